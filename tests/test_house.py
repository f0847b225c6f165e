"""The layers of the package: imports go one way, few files import each library, the emulator stands apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import netmind_rentgpu

PACKAGE = Path(netmind_rentgpu.__file__).parent
# From the lowest layer up. A module may import only modules before it.
LAYERS = [
    "version",
    "models",
    "results",
    "errors",
    "literals",
    "profile",
    "settings",
    "concurrency.threads",
    "concurrency.exit_hooks",
    "wire.payload",
    "wire.codec",
    "wire.messages",
    "wire.responses",
    "wire.retry",
    "wire.transport",
    "wire.caller",
    "wire.paging",
    "resources.arguments",
    "resources.listing",
    "resources.machines",
    "resources.auths",
    "resources.images",
    "concurrency.cancellation",
    "concurrency.event_loops",
    "conditions",
    "connecting",
    "waiting.strategy",
    "waiting.snapshots",
    "waiting.poll_round",
    "waiting.shared_poller",
    "waiting.waits",
    "waiting.watching",
    "waiting.reachable",
    "resources.containers",
    "resources.raw",
    "state_file",
    "ssh.arguments",
    "ssh.login",
    "ssh.credentials",
    "ssh.commands",
    "ssh.transfer",
    "ssh.terminal",
    "ssh.forwards",
    "ssh.operations",
    "ssh.shell",
    "rentals.names",
    "rentals.needs",
    "rentals.owners",
    "rentals.records",
    "concurrency.single_flight",
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
    "sync.pending_call",
    "sync.portal",
    "sync.wrappers",
    "sync.handles",
    "sync.client",
    "testing",
    "cli.demo",
    "cli.app",
    "cli",
]
LIBRARY_USERS = {
    "aiohappyeyeballs": {"connecting"},
    "aiohttp": {"wire.transport", "emulator.web", "client"},
    "anyio": {"sync.portal", "concurrency.cancellation"},
    "asyncssh": {
        "emulator.forwards",
        "emulator.shells",
        "ssh.credentials",
        "ssh.commands",
        "ssh.forwards",
        "ssh.login",
        "ssh.shell",
        "ssh.terminal",
        "ssh.transfer",
        "ssh.operations",
        "client",
    },
    "cattrs": {"wire.codec"},
    "orjson": {"wire.payload"},
    "click": {"cli.app"},
    "rich": {"cli.demo"},
    "pytest": {"testing"},
    "sqlite3": {"state_file"},
    "yarl": {"wire.transport"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
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


MODULES = dict(modules())


def test_every_module_has_its_layer() -> None:
    assert {name for name in MODULES if name and not name.startswith("emulator")} == {
        *LAYERS,
        "concurrency",
        "sync",
        "wire",
        "resources",
        "waiting",
        "ssh",
    }


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_module_imports_only_lower_layers(module: str) -> None:
    own = [
        name.removeprefix("netmind_rentgpu.") for name in imports(MODULES[module]) if name.startswith("netmind_rentgpu")
    ]
    if module.startswith("emulator"):
        assert all(name.startswith("emulator") for name in own)
        return
    for name in own:
        if name == "resources":
            continue  # `from netmind_rentgpu.resources import arguments`
        if name == "emulator":
            assert module in ("cli.demo", "testing")
            continue
        assert LAYERS.index(name) < LAYERS.index(module), f"{module} imports {name}"


@pytest.mark.parametrize("library", LIBRARY_USERS)
def test_library_is_imported_only_by_its_modules(library: str) -> None:
    users = {module for module, tree in MODULES.items() if any(name.split(".")[0] == library for name in imports(tree))}
    assert users == LIBRARY_USERS[library]


def test_no_module_is_longer_than_400_lines() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
