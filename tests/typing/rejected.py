"""What type checkers must reject: each line marked so. Checked by CI, never run."""

from aiohttp import ClientSession

from netmind_rentgpu import AsyncRentGPU, PaymentType, RentGPU, Timeouts, conditions


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
    await gpu.containers.wait(1)  # reject
    await gpu.containers.wait(1, until="running")  # reject
    await gpu.containers.wait(1, until=conditions.has_ssh, on_progress=print)  # reject
    await gpu.containers.wait_all(1, until=conditions.has_ssh)  # reject
    await gpu.containers.watch()  # reject
    with gpu.ssh(1):  # reject
        pass
    async with gpu.ssh("1"):  # reject
        pass
    async with gpu.ssh(1) as shell:
        shell.run("x").stdout  # reject
        await shell.run(["x"])  # reject
        await shell.stream("x")  # reject
        await shell.forward(8888, 8888)  # reject
    gpu.rent(image=2.5)  # reject
    gpu.rent("PyTorch 2.4")  # reject
    gpu.rent(image=1, ttl=3600)  # reject
    gpu.rent(image=1, gpus="2")  # reject
    await gpu.rent(image=1)  # reject
    with gpu.rent(image=1):  # reject
        pass
    async with gpu.rent(image=1) as rental:
        rental.run("x").stdout  # reject
        rental.spent + 1  # reject
        rental.spent = None  # reject
    await gpu.offers(image=1)  # reject
    for _ in gpu.offers():  # reject
        pass
    gpu.rentals.attach(b"rg")  # reject
    gpu.rentals.reap().clean  # reject
    container = await gpu.containers.get(1)
    container.name = "other"  # reject
    container.ssh_endpoint.host  # reject
    (await gpu.auths.list()).items[0].value.upper()  # reject


def synchronous_mistakes(gpu: RentGPU, session: ClientSession) -> None:
    RentGPU(token=7)  # reject
    RentGPU(session=session)  # reject
    gpu.machines.list("US")  # reject
    gpu.machines.list(gpu="1")  # reject
    gpu.auths.create()  # reject
    gpu.auths.create(value=12345678)  # reject
    gpu.images.create(name="n")  # reject
    gpu.containers.create(name="n", auth_id=1, node_name="n", image_template_id=1)  # reject
    gpu.containers.get("1")  # reject
    gpu.containers.get(1).nonsense  # reject
    gpu.containers.get(1).name.upper()  # reject
    gpu.containers.list(page_size="2")  # reject
    gpu.containers.list().items  # reject
    gpu.containers.start(1)  # reject
    gpu.containers.wait(1, conditions.has_ssh)  # reject
    gpu.containers.watch(5)  # reject
    gpu.request("GET")  # reject
    gpu.rent(keep="yes")  # reject
    gpu.rent(image=1, budget="5")  # reject
    gpu.rent(image=1, idle_timeout=20)  # reject
    gpu.rent_many("8")  # reject
    gpu.rent_many(8, keep=True)  # reject
    gpu.rent_many(8, gpus="1")  # reject
    gpu.offers("RTX 4090")  # reject
    gpu.rentals.reap(True)  # reject
    with gpu.rent(image=1) as rental:
        rental.run(["x"])  # reject
        rental.detach().name.nonsense  # reject


async def mixed_up(gpu: RentGPU) -> None:
    async with gpu.ssh(1):  # reject
        pass
    with gpu.ssh(1) as shell:
        await shell.run("x")  # reject
        async for _ in shell.stream("x"):  # reject
            pass
    async with gpu.rent(image=1):  # reject
        pass
    with gpu.rent(image=1) as rental:
        await rental.run("x")  # reject
    await gpu.rentals.reap()  # reject
    await gpu.containers.get(1)  # reject
    async for _ in gpu.containers.list():  # reject
        pass
    async with gpu:  # reject
        pass
