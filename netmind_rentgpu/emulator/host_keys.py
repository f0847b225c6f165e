"""The host keys of the containers' SSH servers."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

__all__ = ["host_key"]


def host_key(container_id: int, which: int) -> bytes:
    """Return a container's host key, as a PEM file has it, derived from the container's id and the number of the key.

    Ids, ports and tokens are the same again after a reset and in the next run. A client that stores host keys would take a
    changed key for another server.
    """
    seed = hashlib.sha256(f"host key {which} of the emulated container {container_id}".encode()).digest()
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
