"""The limits of copies, which a client's logins carry, so that a test can lower them."""

from __future__ import annotations

import attrs

__all__ = ["SSHLimits"]


@attrs.frozen(kw_only=True)
class SSHLimits:
    """Time limits in seconds, and the most that is copied.

    Attributes:
        sftp_start: for the start of the server's SFTP.
        answer: for each answer of the SFTP server, because a stuck server may still keep its connection alive.
        tidying: for each answer while a failed copy removes what it has left.
        entries: the files and folders of one copy, because a listing without an end must not fill the memory.
        unsized: the bytes of a file that reports a size of 0, as those in /proc do, because such a file may have no end.
    """

    sftp_start: float = 60.0
    answer: float = 60.0
    tidying: float = 5.0
    entries: int = 1_000_000
    unsized: int = 64 * 1024 * 1024
