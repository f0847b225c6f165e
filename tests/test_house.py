"""The house: arrows run one way, one file knows each outside library, the emulator stands apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import netmind_rentgpu

PACKAGE = Path(netmind_rentgpu.__file__).parent
# From the ground floor up. A room may import from those before it.
FLOORS = [
    "version",
    "models",
    "ssh.results",
    "errors",
    "documented",
    "profile",
    "settings",
    "threads",
    "exiting",
    "wire.payload",
    "wire.codec",
    "wire.outcome",
    "wire.retry",
    "wire.transport",
    "wire.caller",
    "wire.paging",
    "resources.arguments",
    "resources.listing",
    "resources.machines",
    "resources.auths",
    "resources.images",
    "shielding",
    "loops",
    "conditions",
    "connecting",
    "waiting.strategy",
    "waiting.snapshots",
    "waiting.look",
    "waiting.sweep",
    "waiting.waits",
    "waiting.watching",
    "waiting.reachable",
    "resources.containers",
    "resources.raw",
    "state",
    "ssh.arguments",
    "ssh.login",
    "ssh.access",
    "ssh.commands",
    "ssh.transfer",
    "ssh.terminal",
    "ssh.forwards",
    "ssh.underway",
    "ssh.shell",
    "rentals.names",
    "rentals.needs",
    "rentals.owners",
    "rentals.records",
    "rentals.sharing",
    "rentals.outcomes",
    "rentals.tries",
    "rentals.ledger",
    "rentals.supplies",
    "rentals.market",
    "rentals.desk",
    "rentals.ends",
    "rentals.doubts",
    "rentals.hold",
    "rentals.standing",
    "rentals.block",
    "rentals.term",
    "rentals.line",
    "rentals.reaper",
    "rentals.exit",
    "rentals.rental",
    "rentals.renting",
    "rentals.rentals",
    "rentals",
    "client",
    "crossing",
    "bridge",
    "bridged",
    "handles",
    "sync",
    "testing",
    "cli.demo",
    "cli.app",
    "cli",
]
KNOWS = {
    "aiohappyeyeballs": {"connecting"},
    "aiohttp": {"wire.transport", "emulator.web", "client"},
    "anyio": {"bridge", "shielding"},
    "asyncssh": {
        "emulator.forwards",
        "emulator.shells",
        "ssh.access",
        "ssh.commands",
        "ssh.forwards",
        "ssh.login",
        "ssh.shell",
        "ssh.terminal",
        "ssh.transfer",
        "ssh.underway",
        "client",
    },
    "cattrs": {"wire.codec"},
    "orjson": {"wire.payload"},
    "click": {"cli.app"},
    "rich": {"cli.demo"},
    "pytest": {"testing"},
    "sqlite3": {"state"},
    "yarl": {"wire.transport"},
}


def rooms() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__").removesuffix("__init__"), ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


ROOMS = dict(rooms())


def test_every_room_has_its_floor() -> None:
    assert {name for name in ROOMS if name and not name.startswith("emulator")} == {
        *FLOORS,
        "wire",
        "resources",
        "waiting",
        "ssh",
    }


@pytest.mark.parametrize("room", [name for name in ROOMS if name])
def test_arrows_run_one_way(room: str) -> None:
    own = [name.removeprefix("netmind_rentgpu.") for name in imports(ROOMS[room]) if name.startswith("netmind_rentgpu")]
    if room.startswith("emulator"):
        assert all(name.startswith("emulator") for name in own)
        return
    for name in own:
        if name == "resources":
            continue  # `from netmind_rentgpu.resources import arguments`
        if name == "emulator":
            assert room in ("cli.demo", "testing")
            continue
        assert FLOORS.index(name) < FLOORS.index(room), f"{room} imports {name}"


@pytest.mark.parametrize("library", KNOWS)
def test_one_file_knows_each_library(library: str) -> None:
    who = {room for room, tree in ROOMS.items() if any(name.split(".")[0] == library for name in imports(tree))}
    assert who == KNOWS[library]


def test_no_file_is_two_rooms() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
