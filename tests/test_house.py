"""The layers of the package: imports run one way, few files import each library, the emulator stands apart."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import netmind_rentgpu

PACKAGE = Path(netmind_rentgpu.__file__).parent
# Ground first. A module imports only its own layer and earlier ones; a folder stands for all that it holds.
LAYERS = [
    {"models", "literals", "version", "results", "escaping", "tables", "amounts"},
    {"errors", "arguments"},
    {
        "requests",
        "profile",
        "settings",
        "fingerprint",
        "conditions",
        "gpu_names",
        "accounts",
        "config_file",
        "state_path",
    },
    {"conversion"},
    {"concurrency"},
    {"connecting", "state_schema"},
    {"sqlite_file"},
    {"state_file", "state_accounts"},
    {"wire"},
    {"waiting"},
    {"resources"},
    {"ssh"},
    {"rentals.selection", "rentals.ledger", "rentals.limits"},
    {"rentals.guardian.guard", "rentals.guardian.packages", "rentals.guardian.registration", "rentals.guardian.link"},
    {"rentals.context"},
    {"rentals.lifecycle"},
    {"rentals.at_exit"},
    {"rentals.signals"},
    {"rentals.rented_machine"},
    {"rentals.rental", "rentals.work_queue"},
    {"rentals.fleet_budget"},
    {"rentals.fleet_rentals"},
    {"rentals.fleet_members"},
    {"rentals.fleet_map"},
    {"rentals.fleet"},
    {"rentals.renting", "rentals.rentals_api", "rentals.budgets_api"},
    {"rentals.renting_calls"},
    {"client"},
    {"rentals.guardian.look"},
    {"rentals.guardian.process"},
    {"sync"},
    {"cli", "dask", "testing"},
    {"__main__"},
]
# Imports that run upwards all the same, within a function, so that no module needs the other to be imported.
EXCEPTIONS = {("models", "conversion")}  # for `to_dict` and `from_dict`, which are methods of the models
# Pairs of a folder and what it never imports, although the layers alone would allow it.
NEVER = [("rentals.selection", "rentals.ledger"), ("rentals.ledger", "rentals.selection")]
# These run the emulator, which nothing else of the package imports.
EMULATOR_USERS = {"cli.commands.emulator", "cli.demo", "testing"}
LIBRARY_USERS = {
    "aiohappyeyeballs": {"connecting"},
    "aiohttp": {"wire.transport", "wire.lazy_transport", "emulator.web", "client"},
    "anyio": {"sync.portal", "concurrency.cancellation"},
    "asyncssh": {
        "emulator.forwards",
        "emulator.shells",
        "ssh.commands",
        "ssh.connection",
        "ssh.credentials",
        "ssh.forwarded",
        "ssh.forwards",
        "ssh.lasting_forwards",
        "ssh.listing",
        "ssh.login",
        "ssh.opening",
        "ssh.operations",
        "ssh.refusals",
        "ssh.session_probe",
        "ssh.terminal",
        "ssh.transfer",
    },
    "cattrs": {"conversion"},
    "cryptography": {"dask.certificates", "emulator.host_keys"},
    "dask": {"dask.cluster", "dask.options", "dask.worker_jobs", "dask.worker_program"},
    "distributed": {
        "dask.adaptive",
        "dask.at_exit",
        "dask.certificates",
        "dask.cluster",
        "dask.endings",
        "dask.machine_runs",
        "dask.machine_workers",
        "dask.options",
        "dask.supervisor",
        "dask.worker_program",
    },
    "orjson": {"wire.payload"},
    "psutil": {"rentals.ledger.process_identity"},
    "rich": {"cli.demo", "cli.markdown", "cli.tables"},
    "tomlkit": {"cli.config_writing"},
    "pytest": {"testing"},
    "sqlite3": {"sqlite_file"},
    "uvloop": {"concurrency.event_loops"},
    "yarl": {"wire.transport"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix("__init__").removesuffix("."), ast.parse(path.read_text())


MODULES = dict(modules())


@functools.cache
def imports(tree: ast.Module) -> tuple[str, ...]:
    """Return the full name of each module that is imported, by whatever statement, at the top or within a function."""
    return tuple(found_imports(tree))


def found_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("netmind_rentgpu.") in MODULES else node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            # The package's own names are loaded by a name that is put together.
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def own_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, but for the exceptions."""
    prefix = "netmind_rentgpu."
    found = {name.removeprefix(prefix) for name in imports(MODULES[module]) if name.startswith(prefix)}
    return {name for name in found if (module, name) not in EXCEPTIONS}


def is_in(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) for folder in layer if is_in(module, folder))


IN_LAYERS = [
    name for name in MODULES if name not in ("", "rentals", "rentals.guardian") and not is_in(name, "emulator")
]


def test_every_folder_of_the_layers_exists() -> None:
    assert {folder for layer in LAYERS for folder in layer} <= MODULES.keys()


def test_no_module_imports_names_from_the_package_itself() -> None:
    # They could come from any layer.
    assert [module for module in IN_LAYERS if "netmind_rentgpu" in set(imports(MODULES[module]))] == []


def test_modules_import_only_their_own_layer_and_earlier_ones() -> None:
    upward = {
        (module, name)
        for module in IN_LAYERS
        for name in own_imports(module)
        if not is_in(name, "emulator") and layer_of(name) > layer_of(module)
    }
    assert upward == set()


def test_every_exception_is_needed_and_not_at_the_top_of_its_module() -> None:
    for module, name in EXCEPTIONS:
        tree = MODULES[module]
        at_the_top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert f"netmind_rentgpu.{name}" in set(imports(tree)) - set(imports(at_the_top))


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: own_imports(module) - {module} for module in MODULES if module}
    while leaves := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in leaves:
            del left[module]
    assert left == {}


@pytest.mark.parametrize(("folder", "forbidden"), NEVER)
def test_folder_does_not_import_its_neighbour(folder: str, forbidden: str) -> None:
    crossing = {
        (module, name)
        for module in MODULES
        if is_in(module, folder)
        for name in own_imports(module)
        if is_in(name, forbidden)
    }
    assert crossing == set()


def test_emulator_and_the_rest_of_the_package_stand_apart() -> None:
    inside = [module for module in MODULES if is_in(module, "emulator")]
    assert {name for module in inside for name in own_imports(module) if not is_in(name, "emulator")} == set()
    outside = {module for module in IN_LAYERS if any(is_in(name, "emulator") for name in own_imports(module))}
    assert outside == EMULATOR_USERS


def test_click_is_imported_only_where_commands_and_options_are_declared() -> None:
    users = {module for module, tree in MODULES.items() if any(name.split(".")[0] == "click" for name in imports(tree))}
    declaring = {"cli.app", "cli.needs", "cli.options"}
    assert {module for module in users if not is_in(module, "cli.commands")} == declaring


@pytest.mark.parametrize("library", LIBRARY_USERS)
def test_library_is_imported_only_by_its_modules(library: str) -> None:
    users = {module for module, tree in MODULES.items() if any(name.split(".")[0] == library for name in imports(tree))}
    assert users == LIBRARY_USERS[library]


def test_no_module_is_longer_than_500_lines() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path
