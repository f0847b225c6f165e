"""What type checkers must reject: each line marked so. Checked by CI, never run."""

from netmind_rentgpu import AsyncRentGPU, PaymentType, Timeouts


async def mistakes(gpu: AsyncRentGPU) -> None:
    AsyncRentGPU(token=7)  # reject
    Timeouts(5)  # reject
    await gpu.machines.list("US")  # reject
    await gpu.machines.list(gpu="1")  # reject
    await gpu.auths.create()  # reject
    await gpu.auths.create(value=12345678)  # reject
    await gpu.images.create(name="n")  # reject
    await gpu.containers.create(name="n", auth_id=1, node_name="n", image_template_id=1)  # reject
    await gpu.containers.create(
        name="n",
        auth_id="1",  # reject
        node_name="n",
        image_template_id=1,
        payment_type=PaymentType.USD,
    )
    await gpu.containers.get("1")  # reject
    for _ in gpu.containers.list():  # reject
        pass
    container = await gpu.containers.get(1)
    container.name = "other"  # reject
    container.ssh_endpoint.host  # reject
    (await gpu.auths.list()).items[0].value.upper()  # reject
