"""2,000 containers watched and waited for with a handful of requests."""

import asyncio
import os

from netmind_rentgpu import AsyncRentGPU, Change, Container, PaymentType, RateLimitError
from netmind_rentgpu.conditions import has_ssh

COUNT = int(os.environ.get("COUNT", "2000"))


async def create(gpu: AsyncRentGPU, auth_id: int, nodes: list[str], number: int) -> int:
    try:
        container = await gpu.containers.create(
            name=f"worker-{number}",
            auth_id=auth_id,
            node_name=nodes[number % len(nodes)],
            image_template_id=1,
            payment_type=PaymentType.USD,
        )
    except RateLimitError:
        return await create(gpu, auth_id, nodes, number)
    return container.id


async def main() -> None:
    async with AsyncRentGPU() as gpu:
        nodes = [machine.node_name for machine in await gpu.machines.list() for _ in range(machine.gpu_count or 0)]
        auth = await gpu.auths.create("a-long-password")
        ids = await asyncio.gather(*(create(gpu, auth.id, nodes, number) for number in range(COUNT)))
        arrived = await gpu.containers.wait_all(ids, until=has_ssh, timeout=300)
        seen: dict[int, Change] = {}
        gone: set[int] = set()
        deleting: asyncio.Future[list[Container | None]] | None = None
        async for change in gpu.containers.watch(ids, initial=True):
            if change.after is None:
                gone.add(change.container_id)
            else:
                seen[change.container_id] = change
            if len(seen) == COUNT and deleting is None:
                deleting = asyncio.gather(*(gpu.containers.delete(container_id) for container_id in ids))
        assert deleting is not None
        await deleting
        print(len(arrived), len(seen), len(gone))


asyncio.run(main())
