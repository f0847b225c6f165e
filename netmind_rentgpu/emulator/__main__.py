"""`python -m netmind_rentgpu.emulator`: serve until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from netmind_rentgpu.emulator.server import Emulator


async def _serve(emulator: Emulator) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    async with emulator:
        # In a form that a shell can take as it is.
        print(f"export NETMIND_BASE_URL={emulator.url}")
        print(f"export NETMIND_API_KEY={emulator.token}", flush=True)
        print("serving until interrupted", file=sys.stderr, flush=True)
        await stop.wait()
        for charge in emulator.running:
            print(
                f"still rented: {charge.name} ({charge.container_id}), {charge.hourly_price} USD an hour",
                file=sys.stderr,
            )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is from 0 to 65535")
    return port


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m netmind_rentgpu.emulator",
        description="A local Rent GPU service. Prints its URL and token as shell commands, and serves until interrupted.",
    )
    parser.add_argument("--port", type=_port, default=0, help="on 127.0.0.1; 0 for any that is free (the default)")
    parser.add_argument("--seed", type=int, default=0, help="what machines and prices follow from")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(Emulator(seed=options.seed, port=options.port)))
    except OSError as error:
        print(f"cannot serve on port {options.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
