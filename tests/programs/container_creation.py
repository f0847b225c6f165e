"""The creation of a container, with all that it needs, for programs that test the pytest plugin."""

from __future__ import annotations

from netmind_rentgpu import AsyncRentGPU, Container, PaymentType


async def create(gpu: AsyncRentGPU, name: str = "mine") -> Container:
    """Create a login and a container with it."""
    auth = await gpu.auths.create("a-password")
    machine = (await gpu.machines.list())[0]
    return await gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )
