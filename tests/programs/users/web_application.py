"""A web application that starts and stops containers, one client for all requests."""

import asyncio
import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web
from aiohttp.typedefs import Handler

from netmind_rentgpu import APIStatusError, AsyncRentGPU, Container, NotFoundError, PaymentType, RentGPUError
from netmind_rentgpu.conditions import has_ssh

GPU = web.AppKey("gpu", AsyncRentGPU)


async def client(app: web.Application) -> AsyncIterator[None]:
    async with AsyncRentGPU() as gpu:
        app[GPU] = gpu
        yield


async def create(gpu: AsyncRentGPU, name: str) -> Container:
    auth = await gpu.auths.ensure("a-long-password")
    for offer in await gpu.offers():
        try:
            return await gpu.containers.create(
                name=name,
                auth_id=auth.id,
                node_name=offer.machine.node_name,
                image_template_id=1,
                payment_type=PaymentType.USD,
            )
        except APIStatusError as error:  # sold out since it was listed
            print(error.message, file=sys.stderr)
    raise web.HTTPServiceUnavailable(text="no machine is free")


async def start(request: web.Request) -> web.Response:
    gpu = request.app[GPU]
    container = await create(gpu, request.match_info["name"])
    ready = await gpu.containers.wait(container.id, until=has_ssh, timeout=60)
    return web.json_response(ready.to_dict(json=True))


async def stop(request: web.Request) -> web.Response:
    try:
        await request.app[GPU].containers.delete(int(request.match_info["id"]))
    except NotFoundError as error:
        return web.json_response({"error": error.message}, status=404)
    return web.json_response({"deleted": True})


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RentGPUError as error:
        return web.json_response({"error": str(error)}, status=502)


async def main() -> None:
    app = web.Application(middlewares=[errors])
    app.cleanup_ctx.append(client)
    app.add_routes([web.post("/{name}", start), web.delete("/{id}", stop)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with ClientSession(f"http://{host}:{port}") as session:
        answers = await asyncio.gather(*(session.post(f"/box-{number}") for number in range(5)))
        started = [await answer.json() for answer in answers]
        assert all(container["ssh"] for container in started), started
        for container in started:
            answer = await session.delete(f"/{container['id']}")
            assert answer.status == 200, await answer.text()
        again = await session.delete(f"/{started[0]['id']}")
        print(sorted(container["name"] for container in started), again.status)
    await runner.cleanup()


asyncio.run(main())
