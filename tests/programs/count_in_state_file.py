"""Count up a number in a state file, from a parent and its forked child; their writes have to exclude each other.

Arguments: the state file, how often each counts, and a folder. With "alone" as a fourth argument nothing is forked.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.sqlite_file import Connection
from netmind_rentgpu.state_file import State

PATH, TIMES, FOLDER = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
FINGERPRINT = Fingerprint("https://service.example", "a-token")


def count_up(connection: Connection) -> None:
    """Read the number, and write the next one a moment later."""
    (number,) = connection.execute("SELECT public_key FROM host_keys WHERE container_id = 1").fetchone()
    # Gives another process the time to write in between, which it must not be able to.
    time.sleep(0.001)
    connection.execute("UPDATE host_keys SET public_key = ? WHERE container_id = 1", (str(int(number) + 1),))


async def count(state: State) -> None:
    """Count in as many transactions as it takes."""
    for _ in range(TIMES):
        await state.write(count_up)


def take_all_descriptors() -> list[Path]:
    """Close every descriptor, as daemons do, and open files of one's own in their places."""
    os.closerange(3, 256)
    own = [FOLDER / f"own-{number}" for number in range(40)]
    for path in own:
        os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    return own


state = State(PATH, FINGERPRINT)
asyncio.run(count(state))
if sys.argv[4:] == ["alone"]:
    sys.exit()
child = os.fork()
if child == 0:
    status = 1
    try:
        own = take_all_descriptors()
        asyncio.run(count(state))
        asyncio.run(count(State(PATH, FINGERPRINT)))
        # SQLite has not taken one of them for its own.
        status = 0 if all(path.stat().st_size == 0 for path in own) else 2
    finally:
        os._exit(status)
asyncio.run(count(state))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
asyncio.run(count(state))
