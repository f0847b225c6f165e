"""Programs that end with something rented."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import Program

from netmind_rentgpu.emulator import Emulator

# The session of a client that was never closed is aiohttp's to complain of.
QUIETLY = ("-W", "error", "-W", "ignore::ResourceWarning")


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "raise ZeroDivisionError",
        "asyncio.get_running_loop().stop()",
        "os.kill(os.getpid(), signal.SIGINT); await asyncio.sleep(10)",
    ],
    ids=["just ends", "exits", "fails", "stops its loop", "is interrupted"],
)
async def test_what_was_never_left_is_deleted_at_exit(emulator: Emulator, state: Path, end: str) -> None:
    program = Program(
        f"""
        async def main():
            gpu = AsyncRentGPU("{emulator.token}")
            rental = await gpu.rent(image="PyTorch 2.4").__aenter__()
            print(rental.name, flush=True)
            {end}

        asyncio.run(main())
        """,
        environment={"NETMIND_RENTGPU_STATE": str(state)},
        begin="import asyncio, os, signal, sys\nfrom netmind_rentgpu import AsyncRentGPU\n",
    )
    await program.run(emulator.url, QUIETLY)
    assert program.output.startswith("rg-"), program.errors
    assert len(emulator.charges) == 1
    emulator.assert_nothing_rented()


async def test_a_block_that_is_interrupted_is_left(emulator: Emulator, state: Path) -> None:
    program = Program(
        f"""
        async def main():
            async with AsyncRentGPU("{emulator.token}") as gpu:
                async with gpu.rent(image="PyTorch 2.4") as rental:
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.sleep(10)

        asyncio.run(main())
        """,
        environment={"NETMIND_RENTGPU_STATE": str(state)},
        begin="import asyncio, os, signal, sys\nfrom netmind_rentgpu import AsyncRentGPU\n",
    )
    await program.run(emulator.url)
    assert "KeyboardInterrupt" in program.errors
    assert len(emulator.requests.of("delete_container")) == 1
    emulator.assert_nothing_rented()
