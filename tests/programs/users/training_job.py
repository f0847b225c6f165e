"""An asyncio job: rents under a price cap, uploads its code, trains, and fetches the result."""

import asyncio
import sys
from decimal import Decimal
from pathlib import Path

from netmind_rentgpu import AsyncRentGPU, NoMachineError, TransferProgress


def show(progress: TransferProgress) -> None:
    if progress.files_done == progress.files_total:
        print(f"{progress.files_done} files, {progress.bytes_done} bytes", flush=True)


async def train(folder: Path) -> int:
    async with AsyncRentGPU() as gpu:
        try:
            async with gpu.rent(gpu_name="RTX 4090", max_price=Decimal("0.01"), image="PyTorch 2.4"):
                print("too good to be true")
        except NoMachineError as error:
            print(error)
        async with gpu.rent(gpu_name="RTX 4090", max_price=0.9, budget=2, image="PyTorch 2.4") as rental:
            await rental.shell.upload(folder / "code", "code", exclude=["*.pyc"], on_progress=show)
            done = await rental.run("cd code && sh train.sh", check=True, environment={"EPOCHS": "3"})
            print(done, end="")
            await rental.shell.download("code/result.txt", folder / "result.txt")
        assert rental.spent is not None
        assert rental.spent < 2
    print((folder / "result.txt").read_text(), end="")
    return 0


def main() -> int:
    folder = Path(sys.argv[1])
    (folder / "code").mkdir()
    (folder / "code" / "train.sh").write_text('echo "trained $EPOCHS epochs" | tee result.txt\n')
    (folder / "code" / "old.pyc").touch()
    return asyncio.run(train(folder))


if __name__ == "__main__":
    sys.exit(main())
