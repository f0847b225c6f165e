"""The time limits of renting, which a context carries, so that a test can shorten them."""

from __future__ import annotations

import attrs

from netmind_rentgpu.state_file import LONGEST_LOCK

__all__ = ["RentalLimits"]


@attrs.frozen(kw_only=True)
class RentalLimits:
    """Time limits, in seconds.

    Attributes:
        answer: for the answer to a create, once its rental is being released.
        failed_search: for a search whose walks fail, counted from when its container would be listed.
        given_up: for the request that is under way when a second interrupt gives the release up.
        deletion: for all attempts to delete one container, beside the service's own lags.
        between_walks: the shortest time between two walks for what may still turn up, while the rental is in use.
        write: for a write to the state file, which another process may have locked.
        claim: for the claim of a rental whose time is up; then it is deleted by the deadline that its process knows.
        callbacks: for the coroutines of `on_event` to end, once their rental has ended.
        guardian: for a process that misses a deadline, before its guardian deletes the container.
        between_readings: between two readings of a machine that may be idle.
        reading_end: in which the end of a job can still be read, before the guardian gives its machine back.
        lease: for which a fleet with a budget reserves the price of each machine, again and again.
        between_job_looks: the longest time between two looks of the guardian at a job whose end gives its machine back.
    """

    answer: float = 30.0
    failed_search: float = 60.0
    given_up: float = 3.0
    deletion: float = 60.0
    between_walks: float = 10.0
    write: float = LONGEST_LOCK
    claim: float = 5.0
    callbacks: float = 5.0
    guardian: float = 10.0
    between_job_looks: float = 60.0
    reading_end: float = 5.0
    between_readings: float = 60.0
    lease: float = 600.0
