"""A cluster shows its keys, passwords and variables nowhere, neither while software is installed nor while workers run."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import canaries
import dask.config
import pytest
from dask_clusters import command_lines_by_id, environments, never, serving, wanted
from dask_tasks import configuration
from distributed import Client
from renters import Service

from netmind_rentgpu import ConfigurationError
from netmind_rentgpu.dask import RentGPUCluster, Software
from netmind_rentgpu.dask.certificates import ClusterCertificates, make_certificates
from netmind_rentgpu.dask.options import config_for_workers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the tests look processes up in /proc"),
]
VALUE = f"value-{secrets.token_hex(8)}"


@pytest.fixture
async def service(tmp_path: Path) -> Any:
    async with serving(tmp_path, token=canaries.TOKEN) as service:
        yield service


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Return all lines that are logged at all levels, also those of loggers that hand nothing on."""
    found: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    keeper = Keeper()
    loggers = [logging.getLogger(name) for name in ("netmind_rentgpu", "distributed", "distributed.worker", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(keeper)
        logger.setLevel(logging.DEBUG)
    yield found
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(keeper)
        logger.setLevel(level)


def bodies(pem: str) -> list[str]:
    """Return the lines of a key that no other key has."""
    return pem.strip().splitlines()[1:-1]


class Secrets:
    """The secrets of a cluster, and a look for them.

    Attributes:
        keys: the lines of the private keys.
        passwords: the passwords of the machines.
    """

    def __init__(self, made: list[ClusterCertificates]) -> None:
        self.keys = [
            line
            for certificates in made
            for pem in (certificates.security.tls_scheduler_key, certificates.worker["tls_worker_key"])
            for line in bodies(str(pem))
        ]
        self.passwords: set[str] = set()

    def all(self) -> list[str]:
        return [*self.keys, *self.passwords, canaries.TOKEN]

    def assert_none_in(self, where: str, text: bytes | str, *, but: tuple[str, ...] = ()) -> None:
        """Assert that a text shows no secret, nor a variable of the user."""
        data = text.encode(errors="replace") if isinstance(text, str) else text
        for secret in [*self.all(), VALUE]:
            assert secret in but or secret.encode() not in data, f"{secret[:8]} in {where}: {data[:3000]!r}"

    def look_around(self, folders: list[Path]) -> None:
        """Look at all processes, and at all files in the folders of containers."""
        for pid, line in command_lines_by_id().items():
            self.assert_none_in(f"the command line of {pid}", line)
        for pid, environment in environments().items():
            # The workers, and what installs software, have the user's variables, and nothing else.
            self.assert_none_in(f"the environment of {pid}, {line_of(pid)}", environment, but=(VALUE,))
        for folder in folders:
            for file in folder.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    self.assert_none_in(str(file), file.read_bytes())


def line_of(pid: int) -> str:
    return command_lines_by_id().get(pid, b"")[:300].decode(errors="replace")


def homes() -> list[Path]:
    """Return the folders of the containers, by their processes."""
    found = set()
    for environment in environments().values():
        # Other tests may run containers at the same time.
        if VALUE.encode() not in environment:
            continue
        for home in re.findall(rb"(?:^|\0)HOME=([^\0]*netmind-emulator-[^\0]*)", environment):
            found.add(Path(home.decode()))
    return sorted(found)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ClusterCertificates]:
    """Return the certificates of all clusters that the test makes."""
    found: list[ClusterCertificates] = []

    def make(*arguments: Any, **keywords: Any) -> ClusterCertificates:
        found.append(make_certificates(*arguments, **keywords))
        return found[-1]

    monkeypatch.setattr("netmind_rentgpu.dask.options.make_certificates", make)
    return found


async def test_no_secret_is_seen(service: Service, lines: list[str], made: list[ClusterCertificates]) -> None:
    # It installs for as long as the test looks around.
    setup = f"touch {service.folder}/installs; while ! test -e {service.folder}/looked; do sleep 0.05; done"
    options = wanted(service, software=Software(python=sys.executable, setup=[setup]), environment={"OF_USER": VALUE})
    async with RentGPUCluster(2, **options, asynchronous=True) as cluster:
        hidden = Secrets(made)
        assert hidden.keys
        while not (service.folder / "installs").exists():
            await asyncio.sleep(0.05)
        hidden.look_around(homes())
        (service.folder / "looked").touch()
        async with Client(cluster, asynchronous=True) as client:
            await client.wait_for_workers(2, timeout=60)
            async with service.client() as gpu:
                hidden.passwords |= {str(auth.value) async for auth in gpu.auths.list()}
            assert hidden.passwords
            assert all(len(password) >= 8 for password in hidden.passwords)
            assert await client.submit(sum, [1, 2]) == 3
            assert any(VALUE.encode() in environment for environment in environments().values())
            folders = homes()
            assert len(folders) == 2
            hidden.look_around(folders)
            for name, thing in shown_things(cluster, made).items():
                hidden.assert_none_in(f"the repr of {name}", repr(thing))
                hidden.assert_none_in(f"the text of {name}", str(thing))
            hidden.assert_none_in("the page", cluster._repr_html_())
            hidden.assert_none_in("the logs", repr(await cluster.get_logs()))
            hidden.assert_none_in("the info", repr(cluster.scheduler_info))
            hidden.assert_none_in("dask.config", repr(dask.config.config))
            for config in (await client.run(configuration)).values():
                hidden.assert_none_in("a worker's dask.config", config)
            for config in (await client.run(configuration, nanny=True)).values():
                hidden.assert_none_in("a nanny's dask.config", config)
            hidden.assert_none_in("the scheduler's dask.config", await client.run_on_scheduler(configuration))
    for line in lines:
        hidden.assert_none_in("a log line", line)
    assert lines
    # It keeps the passwords of rentals, but nothing of a cluster.
    kept = (service.folder / "state.sqlite3").read_bytes()
    assert not any(secret.encode() in kept for secret in [*hidden.keys, VALUE])


def shown_things(cluster: RentGPUCluster, made: list[ClusterCertificates]) -> dict[str, Any]:
    return {
        "cluster": cluster,
        "plan": cluster._plan,
        "supervisor": cluster._supervisor,
        "certificates": made,
        "entries": cluster.workers,
        "specification": (cluster.worker_spec, cluster.new_spec, cluster.scheduler_spec),
        "security": cluster.security,
        "rentals": cluster.rentals,
        "mesh": vars(cluster._supervisor._mesh),
        "runs": list(cluster._supervisor._runs.values()),
        "variables of the runs": [run.jobs for run in cluster._supervisor._runs.values()],
    }


def test_configuration_for_workers_has_no_tokens_and_objects_of_the_user() -> None:
    with ThreadPoolExecutor() as pool:
        others = {"coiled.token": VALUE, "pool": pool, "scheduler": "dask.distributed", "temporary-directory": "/here"}
        ours = {"array.chunk-size": "7MiB", "distributed.comm.tls.ca-file": VALUE}
        with dask.config.set({**others, **ours}):
            found = config_for_workers()
    assert VALUE not in repr(found)
    assert not others.keys() & found.keys()
    assert found["array"]["chunk-size"] == "7MiB"
    assert found["distributed"]["worker"]


def test_configuration_that_cannot_be_sent_is_refused_before_a_client_is_made() -> None:
    with (
        dask.config.set({"array.backend": object()}),
        pytest.raises(ConfigurationError, match="cannot be sent to workers"),
    ):
        RentGPUCluster(image="PyTorch 2.4", client=never())
