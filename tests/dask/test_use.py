"""The cluster as its users see it, with and without an event loop of theirs."""

from __future__ import annotations

import asyncio
import errno
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dask_clusters import never, wanted
from dask_tasks import incoming, namespace, square, sum_of_squares, variable
from distributed import Client
from distributed.deploy.adaptive import Adaptive
from distributed.security import Security
from renters import Service
from short_forms import thinned
from until import until, until_sync

from netmind_rentgpu import AsyncRentGPU, ClientStateError, ConfigurationError, InvalidArgumentError, RentGPUError
from netmind_rentgpu.dask import RentGPUCluster, Software
from netmind_rentgpu.dask.adaptive import MachineAdaptive, adaptive_like
from netmind_rentgpu.dask.certificates import make_certificates
from netmind_rentgpu.dask.mesh import Mesh
from netmind_rentgpu.emulator import Emulator, Fault

pytestmark = pytest.mark.slow


async def test_synchronous_cluster_can_be_used_and_seen(service: Service) -> None:
    def use() -> None:
        with RentGPUCluster(2, **wanted(service, name="of-a-user")) as cluster, Client(cluster) as client:
            cluster.wait_for_workers(2, timeout=60)
            assert client.gather(client.map(square, range(1000))) == [number**2 for number in range(1000)]
            assert set(client.run(namespace).values()).isdisjoint({namespace()})
            assert len(set(client.run(namespace).values())) == 2
            assert_shown(cluster, client)
            assert_usable_by_threads(cluster, client)
            with client.get_executor() as executor:
                assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]
            client.restart(timeout=60)
            assert client.submit(square, 3).result(timeout=60) == 9
            assert cluster.reason is None
        assert cluster.status.name == "closed"
        cluster.close()
        assert cluster.rentals == {}
        assert cluster.hourly_price == 0
        assert cluster.spent
        assert "of-a-user" in repr(cluster)
        assert "Spent" in cluster._repr_html_()

    await asyncio.to_thread(use)
    await service.assert_nothing_left()


def assert_shown(cluster: RentGPUCluster, client: Client) -> None:
    """Assert that a cluster of two workers shows its machines and costs."""
    rentals = cluster.rentals
    assert len(rentals) == 2
    assert {worker["name"] for worker in cluster.scheduler_info["workers"].values()} == set(rentals)
    assert cluster.hourly_price == sum(rental.hourly_price or 0 for rental in rentals.values())
    assert isinstance(cluster.spent, Decimal)
    assert cluster.expires_at is not None
    assert cluster.expires_at.tzinfo is not None
    shown = cluster._repr_html_()
    assert all(word in shown for word in ("of-a-user", "Machines: 2", str(cluster.hourly_price), "Spent", "Ends at"))
    assert "Rents no more" not in shown
    assert "workers=2" in repr(cluster)
    cluster._ipython_display_()  # without ipywidgets
    logs = cluster.get_logs()
    assert {"Cluster", "Scheduler", *client.scheduler_info()["workers"]} == set(logs)
    assert status_of(cluster.dashboard_link) in (200, 404)  # without bokeh, it has no pages
    assert status_of(cluster.dashboard_link.replace("/status", "/health")) == 200


def status_of(address: str) -> int:
    """Return the status of a page."""
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def assert_usable_by_threads(cluster: RentGPUCluster, client: Client) -> None:
    """Assert that several threads may use a cluster at once."""

    def use(number: int) -> int:
        cluster.scale(2)
        assert len(cluster.rentals) == 2
        assert cluster.spent is not None
        return int(client.submit(square, number).result(timeout=60))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(use, range(8))) == [number**2 for number in range(8)]


async def test_shutdown_of_a_client_ends_the_cluster(service: Service) -> None:
    def use() -> None:
        cluster = RentGPUCluster(1, **wanted(service))
        with Client(cluster) as client:
            client.wait_for_workers(1, timeout=60)
            client.shutdown()
        until_sync(lambda: cluster.status.name == "closed")
        cluster.close()

    await asyncio.to_thread(use)
    await service.assert_nothing_left()


async def test_arguments_reach_the_workers(service: Service) -> None:
    options = {"nthreads": 3, "memory_limit": "300 MB", "resources": {"disk": 2.0}, "environment": {"OF_USER": "1"}}
    async with (
        RentGPUCluster(2, **wanted(service, **options), worker_per="container", asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2, timeout=60)
        for worker in cluster.scheduler_info["workers"].values():
            assert (worker["nthreads"], worker["memory_limit"]) == (3, 300_000_000)
            assert worker["resources"] == {"disk": 2.0}
        assert set((await client.run(variable, "OF_USER")).values()) == {"1"}
        assert set((await client.run(variable, "CUDA_VISIBLE_DEVICES")).values()) == {None}
        cluster.scale(cores=4)
        assert len(cluster.worker_spec) == 2
        cluster.scale(memory="301 MB")
        assert len(cluster.worker_spec) == 2
        cluster.scale(memory="1 MB")
        assert len(cluster.worker_spec) == 1
        await until(lambda: len(service.emulator.running) == 1)


async def test_machine_with_two_gpus_has_two_workers(service: Service) -> None:
    async with (
        RentGPUCluster(4, **wanted(service), gpus=2, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(4, timeout=60)
        assert len(cluster.rentals) == len(service.emulator.running) == 2
        assert sorted((await client.run(variable, "CUDA_VISIBLE_DEVICES")).values()) == ["0", "0", "1", "1"]
        workers = cluster.scheduler_info["workers"].values()
        assert {worker["name"] for worker in workers} == {"gpu-1-0", "gpu-1-1", "gpu-2-0", "gpu-2-1"}
        assert all(worker["resources"] == {"GPU": 1.0} for worker in workers)
        # Not those of one machine: a half of it would still cost as much.
        kept = await client.scatter(list(range(8)))
        cluster.scale(2)
        await until(lambda: len(service.emulator.running) == 1)
        assert await client.gather(kept) == list(range(8))
        left = {str(worker["name"]) for worker in cluster.scheduler_info["workers"].values()}
        assert left == {"gpu-1-0", "gpu-1-1"}
        cluster.scale(3)
        await client.wait_for_workers(4, timeout=60)
        assert len(service.emulator.running) == 2
        del kept
        cluster.adapt(minimum=1, maximum=4, interval="100ms", wait_count=2)
        await until(lambda: len(service.emulator.running) == 1)
        await until(lambda: len(cluster._supervisor.seen_workers) == 2)
    await service.assert_nothing_left()


async def test_rechunk_crosses_three_namespaces(service: Service) -> None:
    numpy = pytest.importorskip("numpy")
    array = pytest.importorskip("dask.array")
    async with (
        RentGPUCluster(3, **wanted(service), asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(3, timeout=60)
        assert len({*(await client.run(namespace)).values(), namespace()}) == 4
        ones = client.persist(array.ones((600, 600), chunks=(50, 600)))
        columns = client.persist(ones.rechunk((600, 50)))
        assert await client.compute((columns * numpy.arange(600)).sum()) == 600 * sum(range(600))
        transfers = await client.run(incoming)
        workers = set(cluster.scheduler_info["workers"])
        for receiver, senders in transfers.items():
            assert set(senders) <= workers - {receiver}
            assert senders, transfers
        print({receiver: len(senders) for receiver, senders in transfers.items()})


async def test_wait_for_workers_goes_on_for_workers_that_are_under_way(service: Service) -> None:
    async with RentGPUCluster(1, **wanted(service), asynchronous=True) as cluster:
        cluster._supervisor._give_up(RentGPUError("no more machines"))
        await cluster.wait_for_workers(1, timeout=60)
        with pytest.raises(RentGPUError, match="no more machines"):
            await cluster.wait_for_workers(2)


async def test_wait_for_workers_ends_with_the_reason_or_its_time(service: Service) -> None:
    def use() -> None:
        options = wanted(service, software=Software(python="no-such-python", install="never"), max_failures=1)
        with RentGPUCluster(**options) as cluster, Client(cluster) as client:
            with pytest.raises(TimeoutError, match="0 of 1 workers"):
                cluster.wait_for_workers(1, timeout=0.1)
            with pytest.raises(TimeoutError):
                client.wait_for_workers(1, timeout=0.1)
            cluster.scale(1)
            with pytest.raises(ConfigurationError, match="no-such-python"):
                cluster.wait_for_workers(1)
            assert isinstance(cluster.reason, ConfigurationError)
            assert "Rents no more" in cluster._repr_html_()
            until_sync(lambda: cluster.status.name == "closed")
            for waits in (cluster, client):
                with pytest.raises(ConfigurationError, match="no-such-python"):
                    waits.wait_for_workers(1)
            cluster.scale(1)
            assert cluster.worker_spec == {}

    await asyncio.to_thread(use)
    await service.assert_nothing_left()


async def test_two_clusters_in_one_process_are_apart(service: Service) -> None:
    def use(number: int) -> None:
        with RentGPUCluster(1, **wanted(service)) as cluster:
            other.wait(60)
            with Client(cluster, set_as_default=False) as client:
                assert client.submit(square, number).result(timeout=60) == number**2
                assert len(cluster.rentals) == 1
                assert len(cluster.scheduler_info["workers"]) == 1
                other.wait(60)

    other = threading.Barrier(2)
    await asyncio.gather(asyncio.to_thread(use, 3), asyncio.to_thread(use, 4))
    await service.assert_nothing_left()


async def test_synchronous_cluster_works_beside_a_running_loop(tmp_path: Path) -> None:
    # As in a notebook, whose main thread runs an event loop.
    with Emulator(ssh=True, isolated=True, boot_seconds=0.05) as emulator:

        def client() -> AsyncRentGPU:
            return AsyncRentGPU(emulator.token, base_url=emulator.url, state=tmp_path / "state.sqlite3")

        with RentGPUCluster(1, **wanted(None, client=client)) as cluster, Client(cluster) as dask:
            cluster.wait_for_workers(1, timeout=60)
            assert dask.submit(square, 3).result(timeout=60) == 9
        emulator.assert_nothing_rented()


async def test_error_of_the_system_is_a_reason(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def join(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Mesh, "join", join)
    async with RentGPUCluster(1, **wanted(service), max_failures=1, asynchronous=True) as cluster:
        with pytest.raises(RentGPUError, match="Too many open files"):
            await cluster.wait_for_workers(1, timeout=60)
        assert isinstance(cluster.reason, RentGPUError)
    await service.assert_nothing_left()


async def test_wait_for_workers_ends_when_the_cluster_is_closed(service: Service) -> None:
    service.emulator.faults.add(Fault("never starts"))
    async with RentGPUCluster(1, **wanted(service), asynchronous=True) as cluster:
        waiting = asyncio.create_task(cluster.wait_for_workers(1))
        await until(lambda: service.emulator.running)
        await cluster.close()
        with pytest.raises(ClientStateError, match="is closed"):
            await waiting
        with pytest.raises(ClientStateError, match="is closed"):
            await cluster.wait_for_workers(1)
    await service.assert_nothing_left()


@pytest.mark.parametrize("place", ["starts", "boots", "runs"])
async def test_asynchronous_cluster_is_closed_when_its_task_is_cancelled(service: Service, place: str) -> None:
    if place == "boots":
        service.emulator.faults.add(Fault("never starts", times=2))

    async def use() -> None:
        async with RentGPUCluster(2, **wanted(service), asynchronous=True) as cluster:
            clusters.append(cluster)
            if place == "runs":
                await cluster.wait_for_workers(2, timeout=60)
            come.set()
            await asyncio.sleep(60)

    clusters: list[RentGPUCluster] = []
    come = asyncio.Event()
    task = asyncio.create_task(use())
    if place == "starts":
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    else:
        await come.wait()
    if place == "boots":
        await until(lambda: len(service.emulator.running) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(cluster.status.name == "closed" for cluster in clusters)
    await service.assert_nothing_left()


async def test_more_workers_than_allowed_are_not_started(service: Service) -> None:
    async with RentGPUCluster(3, **wanted(service), max_workers=2, asynchronous=True) as cluster:
        assert len(cluster.worker_spec) == 2
        cluster.scale(9)
        assert len(cluster.worker_spec) == 2
        cluster.adapt(minimum=1, maximum=9)
        assert cluster._adaptive.maximum == 2
    await service.assert_nothing_left()


WRONG: list[dict[str, Any]] = [
    {"n_workers": -1},
    {"n_workers": 1.5},
    {"worker_per": "machine"},
    {"gpus": 0},
    {"gpus": "2"},
    {"gpus": 3, "max_workers": 2},
    {"nthreads": 0},
    {"memory_limit": "much"},
    {"memory_limit": ["4 GB"]},
    {"resources": {"disk": "much"}},
    {"resources": ["disk"]},
    {"environment": {"": "1"}},
    {"environment": {"A=B": "1"}},
    {"environment": {"A": 1}},
    {"environment": ["A"]},
    {"software": "python3"},
    {"security": "tls"},
    {"ttl": 60},
    {"ttl": timedelta(0)},
    {"idle_timeout": 60},
    {"max_workers": 0},
    {"max_failures": 0},
    {"start_timeout": -1},
    {"start_timeout": "long"},
    {"unknown": 1},
]
# The client checks these.
WRONG_FOR_CLIENTS: list[dict[str, Any]] = [
    {"budget": -1},
    {"budget": 1, "shared_budget": "ours"},
    {"regions": ""},
]


@pytest.mark.parametrize("wrong", [{"minimum": -1}, {"minimum": 3}, {"minimum": 2, "maximum": 1}, {"maximum": "x"}])
async def test_wrong_bounds_of_adaptive_scaling_are_refused(service: Service, wrong: dict[str, Any]) -> None:
    async with RentGPUCluster(**wanted(service, max_workers=2), asynchronous=True) as cluster:
        with pytest.raises(InvalidArgumentError):
            cluster.adapt(**wrong)
        with pytest.raises(InvalidArgumentError, match="max_workers allows 2"):
            await cluster.wait_for_workers(3)


def test_adaptive_scaling_of_the_users_own_leaves_the_retirement_to_the_cluster() -> None:
    class Own(Adaptive):
        pass

    made = adaptive_like(Own)
    assert issubclass(made, Own)
    assert made.scale_down is MachineAdaptive.scale_down
    assert adaptive_like(made) is made
    assert adaptive_like(None) is MachineAdaptive


async def test_number_of_machines_is_bounded_by_whole_ones(service: Service) -> None:
    options = wanted(service, gpus=3, max_workers=8)
    async with RentGPUCluster(**options, asynchronous=True) as cluster:
        assert [cluster._machines_for(number) for number in (0, 1, 3, 4, 8, 20)] == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_wrong_argument_is_refused_before_a_client_is_made(wrong: dict[str, Any]) -> None:
    options = {"image": "PyTorch 2.4", "client": never(), **wrong}
    with pytest.raises((InvalidArgumentError, TypeError)):
        RentGPUCluster(**options)


@pytest.mark.parametrize("wrong", WRONG_FOR_CLIENTS, ids=repr)
async def test_argument_that_the_client_refuses_is_refused_before_a_request(
    service: Service, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError):
        RentGPUCluster(1, **wanted(service, **wrong))
    assert not service.emulator.requests


def with_files(folder: Path) -> Security:
    """Return certificates in files."""
    made = make_certificates(timedelta(hours=1))
    ours = made.security
    texts = {
        "tls_ca_file": ours.tls_ca_file,
        "tls_scheduler_cert": ours.tls_scheduler_cert,
        "tls_scheduler_key": ours.tls_scheduler_key,
        "tls_client_cert": ours.tls_client_cert,
        "tls_client_key": ours.tls_client_key,
        "tls_worker_cert": made.worker["tls_worker_cert"],
        "tls_worker_key": made.worker["tls_worker_key"],
    }
    for name, text in texts.items():
        (folder / name).write_text(str(text))
    return Security(require_encryption=True, **{name: str(folder / name) for name in texts})


SECURITIES: dict[str, Callable[[Path], Security | bool]] = {
    "none": lambda _: False,
    "temporary": lambda _: Security.temporary(),
    "with files": with_files,
}


@pytest.mark.parametrize("kind", thinned(["with files", "temporary", "none"], every=2))
async def test_workers_use_the_security_that_is_given(service: Service, tmp_path: Path, kind: str) -> None:
    security = SECURITIES[kind](tmp_path)
    async with (
        RentGPUCluster(2, **wanted(service), security=security, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(2, timeout=60)
        protocol = "tcp" if kind == "none" else "tls"
        assert all(address.startswith(f"{protocol}://127.0.0.1:") for address in cluster.scheduler_info["workers"])
        # The clients of tasks have to be accepted, too.
        assert await client.submit(sum_of_squares, [1, 2, 3]) == 14


async def test_joblib_runs_on_the_workers(service: Service) -> None:
    joblib = pytest.importorskip("joblib")

    def use() -> None:
        with RentGPUCluster(1, **wanted(service)) as cluster, Client(cluster) as client:
            client.wait_for_workers(1, timeout=60)
            with joblib.parallel_backend("dask"):
                assert joblib.Parallel()(joblib.delayed(square)(number) for number in range(5)) == [0, 1, 4, 9, 16]

    await asyncio.to_thread(use)
