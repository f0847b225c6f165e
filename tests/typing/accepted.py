"""What users write, and what type checkers must make of it. Checked by CI, never run."""

import asyncio
import sys
from datetime import datetime, timedelta
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any, assert_type

from netmind_rentgpu import (
    AsyncFleet,
    AsyncForward,
    AsyncJob,
    AsyncRental,
    AsyncRentGPU,
    AsyncShell,
    Auth,
    Change,
    CommandResult,
    Container,
    Fleet,
    Forward,
    Image,
    ImageType,
    Job,
    JobState,
    JobStatus,
    Machine,
    MachineRefusal,
    NoMachineError,
    Offer,
    OutputLine,
    Page,
    Pager,
    PaymentType,
    ReapReport,
    Rental,
    RentalRecord,
    RentGPU,
    Retries,
    ServiceProfile,
    Shell,
    SSHEndpoint,
    SSHError,
    Timeouts,
    conditions,
)


async def everything() -> None:
    async with AsyncRentGPU(
        "token",
        base_url="https://x",
        profile=ServiceProfile(list_lag=3, payment_types={"USD": 0}),
        timeout=Timeouts(total=None),
        retries=Retries(max_attempts=2),
        max_connections=10,
        proxy="http://proxy",
    ) as gpu:
        assert_type(gpu, AsyncRentGPU)
        machines = await gpu.machines.list(
            gpu_names=["NVIDIA_GeForce_RTX_4090", "one of tomorrow"], region="US", max_price=Decimal("0.5"), timeout=5
        )
        assert_type(machines, list[Machine])
        assert_type(machines[0].price, Decimal | None)
        assert_type([machine.to_dict() for machine in machines], list[dict[str, Any]])
        assert_type(machines[0].to_dict(secrets=True, json=True), dict[str, Any])
        assert_type(Machine.from_dict({"node_name": "node"}), Machine)
        await gpu.machines.list(gpu_names="TITAN_V", region="XX", currency="EUR", min_price=1, max_price=0.5)

        assert_type(await gpu.auths.create("a-password"), Auth)
        assert_type(await gpu.auths.ensure("a-password", timeout=None), Auth)
        assert_type(await gpu.auths.list(), Page[Auth])
        assert_type(await gpu.images.get(1), Image)
        assert_type([image async for image in gpu.images.list(image_type=ImageType.CUSTOM)], list[Image])
        async for page in gpu.containers.list(page_size=5, marker=7).pages():
            assert_type(page, Page[Container])
            assert_type(page.items, tuple[Container, ...])
            assert_type(page.next_marker, int | str | None)
            for item in page:
                assert_type(item, Container)

        container = await gpu.containers.create(
            name="n", auth_id=1, node_name="n", image_template_id=1, payment_type=PaymentType.USD
        )
        assert_type(container, Container)
        assert_type(container.ssh_endpoint, SSHEndpoint | None)
        assert_type(container.extra["x"], Any)
        assert_type(await gpu.containers.wait(container.id, until=conditions.has_ssh, timeout=5), Container)
        assert_type(
            await gpu.containers.wait_all(
                {1, 2},
                until=conditions.all_of(lambda one: one.gpu == 1, conditions.status_in(1, "up")),
                fail=conditions.negate(conditions.any_of()),
                on_progress=lambda progress: print(progress.arrived / progress.total),
            ),
            list[Container],
        )
        async for change in gpu.containers.watch():
            assert_type(change, Change)
            assert_type(change.after, Container | None)
        assert_type(await gpu.containers.wait_reachable(container.id), Container)
        assert_type(await gpu.containers.wait_ready(container.id, timeout=5), Container)
        assert_type(gpu.ssh(1, accept_new_host_key=True), AsyncShell)
        async with gpu.ssh(container, password="p", timeout=5, keepalive=5) as shell:
            assert_type(shell, AsyncShell)
            done = await shell.run("x", check=True, timeout=5, environment={"A": "b"}, input=b"x", max_output=5)
            assert_type(done, CommandResult)
            assert_type(done.exit_status, int | None)
            async for line in shell.stream("x", input="y"):
                assert_type(line, OutputLine)
            assert_type(await shell.upload(Path("a"), "b", on_progress=lambda one: one.bytes_done), None)
            assert_type(await shell.download("b", "a"), None)
            assert_type(shell.container, Container)
        assert_type(await gpu.containers.delete(container.id, missing_ok=True), Container | None)
        assert_type(await gpu.request("GET", "machines", params={"gpu": 1}), Any)


def everything_synchronously() -> None:
    with RentGPU(
        "token",
        base_url="https://x",
        profile=ServiceProfile(list_lag=3, payment_types={"USD": 0}),
        timeout=Timeouts(total=None),
        retries=Retries(max_attempts=2),
        max_connections=10,
        proxy="http://proxy",
    ) as gpu:
        assert_type(gpu, RentGPU)
        machines = gpu.machines.list(
            gpu_names=["NVIDIA_GeForce_RTX_4090", "one of tomorrow"], region="US", max_price=Decimal("0.5"), timeout=5
        )
        assert_type(machines, list[Machine])
        assert_type(gpu.auths.create("a-password"), Auth)
        assert_type(gpu.auths.ensure("a-password", timeout=None), Auth)
        assert_type(gpu.auths.list(), Pager[Auth])
        assert_type(gpu.auths.list().first_page(), Page[Auth])
        assert_type(gpu.images.get(1), Image)
        assert_type(gpu.images.create(name="n", image_name="i", image_tag="t", image_label="l"), Image)
        assert_type(list(gpu.images.list(image_type=ImageType.CUSTOM)), list[Image])
        for page in gpu.containers.list(page_size=5, marker=7).pages():
            assert_type(page, Page[Container])
        container = gpu.containers.create(
            name="n", auth_id=1, node_name="n", image_template_id=1, payment_type=PaymentType.USD
        )
        assert_type(container, Container)
        assert_type(gpu.containers.stop(container.id), Container)
        assert_type(gpu.containers.wait(container.id, until=conditions.gone), Container)
        assert_type(gpu.containers.wait_all([1, 2], until=conditions.has_ssh), list[Container])
        for change in gpu.containers.watch([1]):
            assert_type(change, Change)
        assert_type(gpu.containers.wait_reachable(container.id, fail=conditions.status_in(3)), Container)
        assert_type(gpu.containers.wait_ready(container.id), Container)
        assert_type(gpu.ssh(1), Shell)
        with gpu.ssh(container, password="p") as shell:
            assert_type(shell, Shell)
            assert_type(shell.run("x", check=True, timeout=5), CommandResult)
            for line in shell.stream("x"):
                assert_type(line, OutputLine)
            assert_type(shell.upload("a", "b"), None)
        assert_type(gpu.containers.delete(container.id, missing_ok=True), Container | None)
        assert_type(gpu.request("GET", "machines", params={"gpu": 1}), Any)
        assert_type(gpu.profile, ServiceProfile)
        assert_type(gpu.close(), None)


async def using_shell(shell: AsyncShell) -> None:
    async with await shell.forward(local_port=1, remote_port=2) as forward:
        assert_type(forward, AsyncForward)
        assert_type(forward.port, int)
    assert_type(await shell.reverse_forward(local_port=1, remote_port=2), AsyncForward)
    assert_type(await forward.close(), None)
    assert_type(await shell.interact(), CommandResult)
    assert_type(await shell.wait_disconnected(), SSHError | None)
    with Path("a").open("rb") as source, Path("b").open("wb") as sink:
        assert_type(await shell.pipe("x", stdin=source, stdout=sink, stderr=2, timeout=5), CommandResult)
    await shell.pipe("x", stdin=b"x", stdout=BytesIO(), environment={"A": "b"}, check=True)
    reader, writer = await asyncio.open_connection("x", 1)
    await shell.pipe("x", stdin=reader, stdout=writer)
    assert_type(await shell.start("x"), AsyncJob)
    assert_type(await shell.jobs(), list[AsyncJob])
    assert_type(await shell.job("x"), AsyncJob)


async def using_job(rental: AsyncRental) -> None:
    job = await rental.start("x", name="n", environment={"A": "b"}, directory="d", input=b"x")
    assert_type(job, AsyncJob)
    assert_type(job.name, str)
    assert_type(job.id, str)
    status = await job.status()
    assert_type(status, JobStatus)
    assert_type(status.state, JobState)
    assert_type(status.exit_status, int | None)
    assert_type(status.exit_signal, str | None)
    assert_type(status.ended_at, datetime | None)
    assert_type(status.is_over, bool)
    async for line in job.logs(follow=True, since=timedelta(minutes=5)):
        assert_type(line, OutputLine)
        assert_type(line.position, str | None)
        assert_type(line.time, datetime | None)
    assert_type([str(line) async for line in job.logs(tail=5)], list[str])
    assert_type([str(line) async for line in job.logs(after="5-0")], list[str])
    assert_type(await job.wait(timeout=5), JobStatus)
    assert_type(await job.stop(grace=0.5), JobStatus)
    assert_type(await job.remove(), None)
    assert_type(await rental.jobs(), list[AsyncJob])
    assert_type(await rental.job("n"), AsyncJob)
    assert_type(await rental.pipe("x", stdin=b"x", stdout=BytesIO()), CommandResult)
    async with await rental.forward(local_port=0, remote_port=2) as forward:
        assert_type(forward, AsyncForward)
    assert_type(await rental.reverse_forward(remote_port=0, local_port=2), AsyncForward)


def using_shell_synchronously(shell: Shell) -> None:
    with shell.reverse_forward(remote_port=0, local_port=2) as forward:
        assert_type(forward, Forward)
    assert_type(forward.close(), None)
    assert_type(shell.interact("x"), CommandResult)
    assert_type(shell.wait_disconnected(), SSHError | None)
    assert_type(shell.pipe("x", stdin=sys.stdin.buffer, stdout=sys.stdout.buffer), CommandResult)
    assert_type(shell.start("x", name="n"), Job)
    assert_type(shell.jobs(), list[Job])
    assert_type(shell.job("n"), Job)


def using_job_synchronously(rental: Rental) -> None:
    job = rental.start("x", name="n", environment={"A": "b"}, directory="d", input="x")
    assert_type(job, Job)
    assert_type(job.command, str)
    assert_type(job.status(), JobStatus)
    for line in job.logs(follow=True, since=datetime.now().astimezone()):
        assert_type(line, OutputLine)
    assert_type([str(line) for line in job.logs(tail=5)], list[str])
    assert_type(job.wait(timeout=5), JobStatus)
    assert_type(job.stop(), JobStatus)
    assert_type(job.remove(), None)
    assert_type(rental.jobs(), list[Job])
    assert_type(rental.job("n"), Job)
    assert_type(rental.pipe("x", stdin=b"x", stdout=sys.stdout.buffer), CommandResult)
    with rental.forward(local_port=0, remote_port=2) as forward:
        assert_type(forward, Forward)
    assert_type(rental.reverse_forward(remote_port=0, local_port=2), Forward)


async def renting(gpu: AsyncRentGPU) -> None:
    offers = await gpu.offers(
        gpu_name=["RTX 4090", "one of tomorrow"], gpus=2, regions="US", key=lambda offer: offer.hourly_price or 0
    )
    assert_type(offers, list[Offer])
    assert_type(offers[0].hourly_price, Decimal | None)
    unentered = gpu.rent(
        image="PyTorch 2.4", gpu_name="NVIDIA_A100_SXM4_80GB", regions=["US", "JP"], max_price=Decimal("0.5")
    )
    assert_type(unentered, AsyncRental)
    async with unentered as rental:
        assert_type(rental, AsyncRental)
        assert_type(await rental.run("x", check=True, timeout=5, input="y"), CommandResult)
        assert_type(rental.shell, AsyncShell)
        assert_type(rental.machine, Machine)
        assert_type(rental.spent, Decimal | None)
        assert_type(rental.expires_at, datetime | None)
        assert_type(rental.max_cost, Decimal | None)
        assert_type(await rental.extend(ttl=timedelta(hours=1), budget=3), RentalRecord)
        assert_type(await rental.detach(), RentalRecord)
    async with gpu.rent(
        image=1,
        labels={"verified"},
        min_cuda="12.4",
        nvlink=True,
        auth="a-password",
        payment_type="USD",
        ttl=timedelta(hours=1),
        extendable_to=timedelta(hours=5),
        label="sweep-3",
        shared_budget="team",
        idle_timeout=timedelta(minutes=20),
        idle_when=lambda reading: not reading.is_busy and reading.connections == 0,
        wait_for_stock=timedelta(hours=2),
        notice=timedelta(minutes=5),
        on_event=print,
        budget=0.5,
        timeout=60,
    ):
        pass
    records = await gpu.rentals.list()
    assert_type(records, list[RentalRecord])
    assert_type(await gpu.rentals.extend(records[0], until=datetime.now().astimezone()), RentalRecord)
    assert_type(records[0].max_cost_at_ceiling, Decimal | None)
    assert_type(gpu.rentals.attach(records[0]), AsyncRental)
    assert_type(await gpu.rentals.reap(wait=True), ReapReport)
    assert_type(NoMachineError("x").refusals, tuple[MachineRefusal, ...])


async def renting_many(gpu: AsyncRentGPU) -> None:
    async def length(rental: AsyncRental, item: str) -> int:
        return len(f"{rental.name}{item}")

    async with gpu.rent_many(
        8, at_least=4, replace=True, image=1, budget=5, gpu_name="RTX 4090", idle_timeout=None
    ) as fleet:
        assert_type(fleet, AsyncFleet)
        assert_type(fleet.rentals, tuple[AsyncRental, ...])
        assert_type(await fleet.run("x", check=True), list[CommandResult])
        assert_type(await fleet.map(length, ["a", "b"], retries=1), list[int])
        assert_type(fleet.spent, Decimal | None)


def renting_many_synchronously(gpu: RentGPU) -> None:
    def length(rental: Rental, item: str) -> int:
        return len(f"{rental.name}{item}")

    with gpu.rent_many(8, image=1, ttl=timedelta(hours=1)) as fleet:
        assert_type(fleet, Fleet)
        assert_type(fleet.rentals, tuple[Rental, ...])
        assert_type(fleet.run("x"), list[CommandResult])
        assert_type(fleet.map(length, ["a", "b"], return_exceptions=True), list[int])


def renting_synchronously(gpu: RentGPU) -> None:
    assert_type(gpu.offers(gpu_name="RTX 4090", max_price=0.5), list[Offer])
    with gpu.rent(image=1, gpus=2, keep=True) as rental:
        assert_type(rental, Rental)
        assert_type(rental.run("x", check=True), CommandResult)
        assert_type(rental.shell, Shell)
        assert_type(rental.container, Container)
        assert_type(rental.hourly_price, Decimal | None)
        assert_type(rental.extend(ttl=timedelta(hours=1)), RentalRecord)
        assert_type(rental.detach(), RentalRecord)
        assert_type(rental.close(), None)
    with gpu.rentals.attach("name", timeout=5) as attached:
        assert_type(attached, Rental)
    assert_type(gpu.rentals.list()[0].certain_at, datetime)
    assert_type(gpu.rentals.reap(by_name=True).clean, bool)
