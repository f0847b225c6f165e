"""`python -m netmind_rentgpu.emulator`: serve until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import attrs

from netmind_rentgpu.emulator.clock import Clock
from netmind_rentgpu.emulator.faults import Fault
from netmind_rentgpu.emulator.presets import preset_world
from netmind_rentgpu.emulator.server import Emulator
from netmind_rentgpu.emulator.world import World

# It may run for weeks.
_KEPT_REQUESTS = 10_000


# The last is Windows', where Ctrl-C cannot be sent to one process alone.
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


@contextmanager
def _handling_signals(stop: Callable[[], object]) -> Generator[None]:
    """Call a function of the running loop for each signal to stop; not by the loop's own handlers, which Windows lacks."""
    loop = asyncio.get_running_loop()
    before = {
        number: signal.signal(number, lambda _number, _frame: loop.call_soon_threadsafe(stop)) for number in _STOPPING
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve(emulator: Emulator) -> None:
    stop = asyncio.Event()
    with _handling_signals(stop.set):
        async with emulator:
            # In a form that a shell can take as it is.
            print(f"export NETMIND_BASE_URL={emulator.url}")
            print(f"export NETMIND_API_KEY={emulator.token}", flush=True)
            print("serving until interrupted", file=sys.stderr, flush=True)
            await stop.wait()
            try:
                emulator.assert_nothing_rented()
            except AssertionError as leaked:
                print(leaked, file=sys.stderr)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is from 0 to 65535")
    return port


def _clock(text: str) -> Clock:
    try:
        return Clock(scale=float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _world(chosen: Sequence[str]) -> World:
    """Read a world from the names of presets and from switches, each over those before it."""
    world = World()
    for text in chosen:
        switch, equals, value = text.partition("=")
        if not equals:
            try:
                world = preset_world(text)
            except KeyError as error:
                raise ValueError(f"--world: {error.args[0]}") from None
            continue
        switches = World.switches()
        if switch not in switches:
            raise ValueError(f"--world: there is no switch {switch}; there are {', '.join(switches)}")
        if value not in switches[switch]:
            raise ValueError(f"--world: {switch} is one of {', '.join(map(repr, switches[switch]))}")
        changes: dict[str, Any] = {switch: value}
        world = attrs.evolve(world, **changes)
    return world


def _faults(path: Path | None) -> list[Fault]:
    if path is None:
        return []
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return [Fault.from_mapping(table) for table in _tables(content)]
    except (OSError, ValueError) as error:
        raise ValueError(f"--faults: {path}: {error}") from None


def _tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = content.get("faults", [])
    if set(content) - {"faults"} or not isinstance(tables, list):
        raise ValueError("it holds something else than [[faults]] tables")
    return cast("list[dict[str, Any]]", tables)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m netmind_rentgpu.emulator",
        description="A local Rent GPU service. Prints its URL and token as shell commands, and serves until interrupted. "
        f"Of the requests it got, it keeps the newest {_KEPT_REQUESTS:,}.",
    )
    parser.add_argument("--port", type=_port, default=0, help="on 127.0.0.1; 0 for any that is free (the default)")
    parser.add_argument("--seed", type=int, default=0, help="what machines, prices and chances follow from")
    parser.add_argument(
        "--world",
        action="append",
        default=[],
        metavar="PRESET|SWITCH=VALUE",
        help="how it behaves where the service's documentation is silent; may be repeated, the last one counts",
    )
    parser.add_argument(
        "--time-scale",
        type=_clock,
        default=Clock(),
        metavar="N",
        help="seconds that pass there in each real one; 0 for a clock that stands still until it is moved",
    )
    parser.add_argument(
        "--faults", type=Path, metavar="FILE", help="a TOML file of [[faults]], each with the fields of a Fault"
    )
    parser.add_argument(
        "--ssh",
        action="store_true",
        help="let containers be logged into, with the auth's password: what is run there runs on this machine, as you",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer requests to this name, too, and from web pages of it; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        emulator = Emulator(
            seed=options.seed,
            port=options.port,
            world=_world(options.world),
            clock=options.time_scale,
            faults=_faults(options.faults),
            keep_requests=_KEPT_REQUESTS,
            ssh=options.ssh,
            allow_hosts=options.allow_host,
        )
    except (ValueError, ModuleNotFoundError, NotImplementedError) as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(emulator))
    except OSError as error:
        print(f"cannot serve on port {options.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
