"""`netmind-rentgpu demo`: a rental and every call of the service, in the order in which a renter makes them.

Each script is a generator for both clients: it yields the return value of each client call, and a driver sends back the
call's result.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.conditions import has_ssh
from netmind_rentgpu.escaping import escaped
from netmind_rentgpu.models import Container, ImageType, Machine, PaymentType
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.sync.client import RentGPU
from netmind_rentgpu.sync.wrappers import Pager
from netmind_rentgpu.waiting.waits import WaitProgress
from netmind_rentgpu.wire.paging import AsyncPager

if TYPE_CHECKING:
    from netmind_rentgpu.emulator import Emulator

__all__ = ["Demo"]

Script: TypeAlias = Generator[Any, Any, Any]
"""Yields the asynchronous client's awaitables or pagers, or the synchronous client's results or pagers."""

# The emulator's SSH servers need POSIX.
_HAS_SSH = find_spec("asyncssh") is not None and find_spec("termios") is not None
_GPU, _MOST = "RTX 4090", Decimal("0.60")
_ROWS = 6
_RENTED = 3
_LONGEST_START = 300.0
_INDENT = (0, 0, 0, 4)


class Demo:
    """Runs the scripts, and prints their steps on a console."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._steps = 0

    async def emulated(self, seed: int, boot_seconds: float) -> None:
        """Start an emulator, rent a machine from it, and make all thirteen calls.

        Args:
            boot_seconds: the approximate seconds that a container takes to start.

        Raises:
            RentGPUError: a call failed.
            AssertionError: a container was still rented in the end.
        """
        from netmind_rentgpu.emulator import Emulator

        with TemporaryDirectory() as folder:
            async with (
                Emulator(seed=seed, boot_seconds=boot_seconds, ssh=_HAS_SSH) as emulator,
                AsyncRentGPU(emulator.token, base_url=emulator.url, state=Path(folder) / "state") as gpu,
            ):
                await _run(self._emulated(gpu, emulator, Path(folder)))

    def emulated_synchronously(self, seed: int, boot_seconds: float) -> None:
        """Do the same as `emulated` with the synchronous client.

        Raises:
            RentGPUError: a call failed.
            AssertionError: a container was still rented in the end.
        """
        from netmind_rentgpu.emulator import Emulator

        with (
            TemporaryDirectory() as folder,
            Emulator(seed=seed, boot_seconds=boot_seconds, ssh=_HAS_SSH) as emulator,
            RentGPU(emulator.token, base_url=emulator.url, state=Path(folder) / "state") as gpu,
        ):
            _run_synchronously(self._emulated(gpu, emulator, Path(folder)))

    async def live(self, options: Mapping[str, Any]) -> None:
        """Read from the real service with the user's token, and rent nothing.

        Args:
            options: the arguments of the client.

        Raises:
            RentGPUError: a call failed.
        """
        async with AsyncRentGPU(**options) as gpu:
            await _run(self._live(gpu))

    def live_synchronously(self, options: Mapping[str, Any]) -> None:
        """Do the same as `live` with the synchronous client.

        Args:
            options: the arguments of the client.

        Raises:
            RentGPUError: a call failed.
        """
        with RentGPU(**options) as gpu:
            _run_synchronously(self._live(gpu))

    def _emulated(self, gpu: AsyncRentGPU | RentGPU, emulator: Emulator, folder: Path) -> Script:
        self._say(f"An emulated service is at {emulator.url}; nothing here costs money.\n")
        try:
            yield from self._rent_and_release(gpu, folder)
        finally:
            self._show_bill(emulator)

    def _show_bill(self, emulator: Emulator) -> None:
        self._say("")
        for charge in emulator.charges:
            self._say(
                f"The bill: {charge.name} ran {charge.seconds:.1f} s at {charge.hourly_price} USD/h, "
                f"{charge.cost:.6f} USD."
            )
        emulator.assert_nothing_rented()
        self._say(f"[bold green]Nothing is still rented.[/] Spent: {emulator.spent:.6f} USD.")

    def _live(self, gpu: AsyncRentGPU | RentGPU) -> Script:
        self._say(f"{gpu!r}: this demo only reads, and rents nothing.\n")
        machines = yield gpu.machines.list()
        self._step("gpu.machines.list()", f"{len(machines)} machines")
        self._show_machines(machines)
        auths = yield gpu.auths.list().first_page()
        self._step("gpu.auths.list()", f"{len(auths)} on the first page")
        if auths.items:
            auth = yield gpu.auths.get(auths.items[0].id)
            self._step(f"gpu.auths.get({auth.id})", f"created {auth.created_at}")
        images = yield gpu.images.list().first_page()
        self._step("gpu.images.list()", f"{len(images)} on the first page")
        if images.items:
            image = yield gpu.images.get(images.items[0].id)
            self._step(f"gpu.images.get({image.id})", f"{image.name}: {image.image_name}:{image.image_tag}")
        rented = yield gpu.containers.list()
        self._step("gpu.containers.list()", f"{len(rented)} rented")
        if rented:
            container = yield gpu.containers.get(rented[0].id)
            self._step(f"gpu.containers.get({container.id})", f"{container.name}, status {container.status}")

    def _rent_and_release(self, gpu: AsyncRentGPU | RentGPU, folder: Path) -> Script:
        machines = yield gpu.machines.list()
        self._step("gpu.machines.list()", f"{len(machines)} machines")
        self._show_machines(machines)

        auth = yield gpu.auths.create(secrets.token_urlsafe(16))
        self._step("gpu.auths.create(...)", f"a password for SSH, stored as auth {auth.id}")
        auths = yield gpu.auths.list()
        self._step("gpu.auths.list()", f"auths of this account: {len(auths)}")
        auth = yield gpu.auths.get(auth.id)
        self._step(f"gpu.auths.get({auth.id})", f"created {auth.created_at}; printing an auth never shows its password")

        official = yield gpu.images.list(image_type=ImageType.OFFICIAL)
        self._step("gpu.images.list()", f"{len(official)} official: {', '.join(str(image.name) for image in official)}")
        image = yield gpu.images.create(
            name="demo", image_name="pytorch/pytorch", image_tag="2.4.0", image_label="pytorch", onstart="nvidia-smi"
        )
        self._step("gpu.images.create(...)", f"our own image {image.id}")
        image = yield gpu.images.get(image.id)
        self._step(f"gpu.images.get({image.id})", f"{image.image_name}:{image.image_tag}, {image.image_type}")

        if _HAS_SSH:
            yield from self._use_a_rental(gpu, folder)
        else:
            self._result("(gpu.rent and SSH need the extra `ssh`: pip install '.[ssh]')")
        yield from self._wait_for_several(gpu, machines, auth.id, image.id)

    def _use_a_rental(self, gpu: AsyncRentGPU | RentGPU, folder: Path) -> Script:
        """Rent a machine, run a program there, download its result, and release the machine."""
        offers = yield gpu.offers(gpu_name=_GPU, max_price=_MOST)
        best = offers[0]
        self._step(
            f"gpu.offers(gpu_name={_GPU!r}, max_price={_MOST})",
            f"{len(offers)} offers, the best is {best.machine.node_name} for {best.hourly_price} {best.currency} an hour",
        )
        self._call(f"gpu.rent(gpu_name={_GPU!r}, max_price={_MOST}, image='demo')")
        rental = gpu.rent(gpu_name=_GPU, max_price=_MOST, image="demo")
        # `__aenter__` returns a coroutine that the driver awaits; `__enter__` has entered the rental when it returns.
        yield rental.__aenter__() if isinstance(rental, AsyncRental) else rental.__enter__()
        try:
            self._result(f"{rental.name}: {rental.machine.gpu_name}, {rental.machine.node_name}\nthe SSH login worked")
            script, result = folder / "train.py", folder / "result.txt"
            script.write_text("print('trained on', open('/proc/sys/kernel/ostype').read().strip())\n", encoding="utf-8")
            done = yield rental.run("nvidia-smi", check=True)
            self._step("rental.run('nvidia-smi')", done.stdout.rstrip())
            yield rental.shell.upload(script, "train.py")
            self._step("rental.shell.upload('train.py', 'train.py')", f"{script.stat().st_size} bytes")
            yield rental.run("python3 train.py > result.txt", check=True)
            self._step("rental.run('python3 train.py > result.txt')", "done")
            yield rental.shell.download("result.txt", result)
            self._step("rental.shell.download('result.txt', 'result.txt')", result.read_text(encoding="utf-8").strip())
        finally:
            yield rental.close()
        self._step("rental.spent", f"about {rental.spent:.6f} USD; rental.close() deleted the container")

    def _wait_for_several(
        self, gpu: AsyncRentGPU | RentGPU, machines: list[Machine], auth_id: int, image_id: int
    ) -> Script:
        """Make the remaining calls, with several containers at once."""
        rented: list[Container] = []
        try:
            for number, machine in enumerate(machines[:_RENTED], 1):
                container = yield gpu.containers.create(
                    name=f"demo-{secrets.token_hex(4)}-{number}",
                    auth_id=auth_id,
                    gpu=1,
                    node_name=machine.node_name,
                    image_template_id=image_id,
                    payment_type=PaymentType.USD,
                )
                rented.append(container)
                self._step("gpu.containers.create(...)", f"{container.name}: {machine.gpu_name}, {machine.node_name}")
            listed = yield gpu.containers.list()
            self._step("gpu.containers.list()", f"{len(listed)} rented")
            yield from self._until_all_have_ssh(gpu, rented)
            first = rented[0].id
            container = yield gpu.containers.get(first)
            self._step(f"gpu.containers.get({first})", f"status {container.status}, an undocumented number")
            yield gpu.containers.stop(first)
            self._step(f"gpu.containers.stop({first})", "stopped")
            yield gpu.containers.restart(first)
            self._step(f"gpu.containers.restart({first})", "starting again")
            container = yield gpu.containers.wait(first, until=has_ssh, timeout=_LONGEST_START)
            self._step(f"gpu.containers.wait({first}, until=has_ssh)", str(container.ssh))
        finally:
            for container in rented:
                yield gpu.containers.delete(container.id, missing_ok=True)
                self._step(f"gpu.containers.delete({container.id})", "deleted")

    def _until_all_have_ssh(self, gpu: AsyncRentGPU | RentGPU, containers: list[Container]) -> Script:
        """Wait until each container's `ssh` names an endpoint, and show a progress bar meanwhile."""
        self._call("gpu.containers.wait_all(ids, until=has_ssh, on_progress=...)")
        columns = (TextColumn("   "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as progress:
            task = progress.add_task("", total=len(containers))

            def show(wait_progress: WaitProgress) -> None:
                progress.update(task, completed=wait_progress.arrived)

            ids = [container.id for container in containers]
            ready = yield gpu.containers.wait_all(ids, until=has_ssh, timeout=_LONGEST_START, on_progress=show)
            seconds = progress.tasks[0].elapsed or 0.0
        endpoints = "\n".join(f"{container.name}: {container.ssh}" for container in ready)
        self._result(f"after {seconds:.1f} s:\n{endpoints}")

    def _show_machines(self, machines: list[Machine]) -> None:
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for title in ("node", "GPU", "region"):
            table.add_column(title, no_wrap=True)
        for title in ("GPUs", "GB each", "USD/h"):
            table.add_column(title, justify="right")
        for machine in machines[:_ROWS]:
            cells = (machine.node_name, machine.gpu_name, machine.region)
            numbers = (machine.gpu_count, machine.gpu_memory, machine.price)
            table.add_row(*("-" if cell is None else escape(escaped(str(cell))) for cell in (*cells, *numbers)))
        if len(machines) > _ROWS:
            table.add_row(f"and {len(machines) - _ROWS} more")
        self._console.print(Padding(table, _INDENT))

    def _step(self, call: str, result: str) -> None:
        self._call(call)
        self._result(result)

    def _call(self, call: str) -> None:
        self._steps += 1
        self._console.print(Text(f"{self._steps:2}. {call}", style="cyan"))

    def _result(self, result: str) -> None:
        # A plain Text, because square brackets in the service's texts must not be read as markup.
        self._console.print(Padding(Text(escaped(result)), _INDENT))

    def _say(self, text: str) -> None:
        self._console.print(text)


async def _run(script: Script) -> None:
    """Run a script with the asynchronous client."""
    resume = partial(next, script)
    while True:
        try:
            call = resume()
        except StopIteration:
            return
        try:
            resume = partial(script.send, await _result(call))
        except BaseException as error:  # noqa: BLE001  # the script cleans up, and raises the error again
            resume = partial(script.throw, error)


async def _result(call: Any) -> Any:
    if isinstance(call, AsyncPager):
        return [item async for item in cast("AsyncPager[Any]", call)]
    return await call


def _run_synchronously(script: Script) -> None:
    """Run a script with the synchronous client, which has already made each call that the script yields."""
    resume = partial(next, script)
    while True:
        try:
            result = resume()
        except StopIteration:
            return
        try:
            resume = partial(script.send, list(cast("Pager[Any]", result)) if isinstance(result, Pager) else result)
        except BaseException as error:  # noqa: BLE001  # the script cleans up, and raises the error again
            resume = partial(script.throw, error)
