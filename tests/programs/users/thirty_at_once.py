"""Thirty rentals at once, while machines sell out."""

import asyncio

from netmind_rentgpu import AsyncRentGPU, NoMachineError


async def work(gpu: AsyncRentGPU, number: int) -> str | None:
    try:
        async with gpu.rent(image="PyTorch 2.4", max_price=2) as rental:
            done = await rental.run(f"echo {number}", check=True)
            return done.stdout.strip()
    except NoMachineError as error:
        print(f"no machine for {number}: {error}")
        return None


async def main() -> None:
    async with AsyncRentGPU() as gpu:
        results = await asyncio.gather(*(work(gpu, number) for number in range(30)))
        assert results == [str(number) for number in range(30)]
        report = await gpu.rentals.reap()
        assert report.clean, report
        assert await gpu.rentals.list() == []
    print("all done")


asyncio.run(main())
