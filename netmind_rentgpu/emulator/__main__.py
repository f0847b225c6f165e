"""`python -m netmind_rentgpu.emulator`: serve an emulated service until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, cast

import attrs

from netmind_rentgpu.emulator.clock import Clock
from netmind_rentgpu.emulator.faults import Fault
from netmind_rentgpu.emulator.presets import preset_world
from netmind_rentgpu.emulator.server import Emulator
from netmind_rentgpu.emulator.world import World

# Limited, because the command may run for weeks.
_KEPT_REQUESTS = 10_000


# Windows has SIGBREAK, because a program there cannot send Ctrl-C to one process alone.
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


@contextmanager
def _handling_signals(stop: Callable[[], object]) -> Generator[None]:
    """Call a function in the running event loop whenever a stop signal arrives.

    The handlers are installed by `signal.signal`, because event loops on Windows have no `add_signal_handler`.
    """
    loop = asyncio.get_running_loop()
    old_handlers = {
        number: signal.signal(number, lambda _number, _frame: loop.call_soon_threadsafe(stop))
        for number in _STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


async def _serve(emulator: Emulator) -> None:
    stop = asyncio.Event()
    with _handling_signals(stop.set):
        async with emulator:
            # Commands that a user can paste into a shell.
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
        raise argparse.ArgumentTypeError(f"a port must be from 0 to 65535, not {port}")
    return port


def _balance(text: str) -> Decimal:
    try:
        balance = Decimal(text)
    except InvalidOperation:
        balance = Decimal("NaN")
    if not balance.is_finite() or balance < 0:
        raise argparse.ArgumentTypeError(f"a balance must be a number of US dollars, 0 or more, not {text}")
    return balance


def _clock(text: str) -> Clock:
    try:
        return Clock(scale=float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _world(choices: Sequence[str]) -> World:
    """Build a world from names of presets and from `SWITCH=VALUE` texts; a later choice overrides an earlier one."""
    world = World()
    for choice in choices:
        switch, equals, value = choice.partition("=")
        if not equals:
            try:
                world = preset_world(choice)
            except KeyError as error:
                raise ValueError(f"--world: {error.args[0]}") from None
            continue
        switches = World.switches()
        if switch not in switches:
            raise ValueError(f"--world: there is no switch {switch}; there are {', '.join(switches)}")
        if value not in switches[switch]:
            values = ", ".join(map(repr, switches[switch]))
            raise ValueError(f"--world: {switch} must be one of {values}, not {value!r}")
        changes: dict[str, Any] = {switch: value}
        world = attrs.evolve(world, **changes)
    return world


def _faults(path: Path | None) -> list[Fault]:
    if path is None:
        return []
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        return [Fault.from_mapping(table) for table in _tables(content)]
    except (OSError, ValueError) as error:
        raise ValueError(f"--faults: {path}: {error}") from None


def _tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = content.get("faults", [])
    if set(content) - {"faults"} or not isinstance(tables, list):
        raise ValueError("the file must hold only [[faults]] tables")
    return cast("list[dict[str, Any]]", tables)


def main(arguments: Sequence[str] | None = None, program: str = "python -m netmind_rentgpu.emulator") -> int:
    """Run the command and return its exit status.

    Args:
        program: the command's name in its help.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Serve a local Rent GPU service until interrupted. The command prints the service's URL and token as "
        f"shell commands. It keeps the newest {_KEPT_REQUESTS:,} requests.",
    )
    parser.add_argument(
        "--port", type=_port, default=0, help="the port on 127.0.0.1; 0 (the default) for any free port"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the seed of machines, prices, start-up times and faults with a probability",
    )
    parser.add_argument("--machines", type=int, default=60, metavar="N", help="the number of machines; 60 by default")
    parser.add_argument(
        "--boot-seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="the approximate emulated seconds until a new container's ssh names an endpoint; 2 by default",
    )
    parser.add_argument(
        "--balance",
        type=_balance,
        metavar="USD",
        help="the balance of each account, after which creates are refused; unlimited by default",
    )
    parser.add_argument(
        "--world",
        action="append",
        default=[],
        metavar="PRESET|SWITCH=VALUE",
        help="the behaviour where the service's documentation is silent; may be repeated, a later choice overrides an "
        "earlier one",
    )
    parser.add_argument(
        "--time-scale",
        type=_clock,
        default=Clock(),
        metavar="N",
        help="emulated seconds in a real second; 0 stops the clock, which then only moves when it is advanced",
    )
    parser.add_argument(
        "--faults", type=Path, metavar="FILE", help="a TOML file of [[faults]] tables with the fields of a Fault"
    )
    parser.add_argument(
        "--ssh",
        action="store_true",
        help="accept SSH logins to containers, with the auth's password; commands run on this machine, as your user",
    )
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="with --ssh, give each container a network of its own, which only SSH reaches; files, processes and users stay "
        "this machine's",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests to this host name and from its web pages; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        emulator = Emulator(
            seed=options.seed,
            port=options.port,
            machines=options.machines,
            boot_seconds=options.boot_seconds,
            balance=options.balance,
            world=_world(options.world),
            clock=options.time_scale,
            faults=_faults(options.faults),
            keep_requests=_KEPT_REQUESTS,
            ssh=options.ssh,
            isolated=options.isolated,
            allow_hosts=options.allow_host,
        )
    except (ValueError, ModuleNotFoundError, NotImplementedError) as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(emulator))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EPIPE, errno.EIO):
            # Otherwise Python fails once more at its exit, when it flushes what could not be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"could not write the output: {error}", file=sys.stderr)
            return 1
        print(f"could not serve on port {options.port}: {error}; choose another --port", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
