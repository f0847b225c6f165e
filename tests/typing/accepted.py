"""What users write, and what type checkers must make of it. Checked by CI, never run."""

from decimal import Decimal
from typing import Any, assert_type

from netmind_rentgpu import (
    AsyncRentGPU,
    Auth,
    Change,
    Container,
    Image,
    ImageType,
    Machine,
    Page,
    Pager,
    PaymentType,
    RentGPU,
    Retries,
    ServiceProfile,
    SSHEndpoint,
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
        assert_type(gpu.containers.delete(container.id, missing_ok=True), Container | None)
        assert_type(gpu.request("GET", "machines", params={"gpu": 1}), Any)
        assert_type(gpu.profile, ServiceProfile)
        assert_type(gpu.close(), None)
