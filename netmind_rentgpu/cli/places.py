"""`cp`: copies between a place here and one on a rented machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netmind_rentgpu.cli.copying import check_local, progress_of
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.output import writing_output
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.targets import find_target
from netmind_rentgpu.cli.values import Place, place

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["copy"]


def copy(session: Session, sources: Sequence[str], destination: str, excluded: Sequence[str]) -> None:
    """Copy files and folders to a machine, or from one.

    Raises:
        CommandError: the places do not go together, or there is no such file here.
        RentGPUError: the machine was not found, or a copy failed.
        OutputError: stdout could not be written.
    """
    has_drives = os.name == "nt"
    places, target = (
        [place(source, has_drives=has_drives) for source in sources],
        place(destination, has_drives=has_drives),
    )
    machine = _machine_of(places, target)
    is_upload = target.target is not None
    _check(places, target)
    if excluded and not is_upload:
        raise CommandError(ExitCode.USAGE, "--exclude-file goes with a copy to a machine")
    if is_upload:
        for each in places:
            if not each.is_stream:
                check_local(each.path)

    async def work(gpu: AsyncRentGPU) -> None:
        found = await find_target(gpu, machine)
        async with gpu.ssh(found.container_id) as shell:
            copier = _Copier(session, shell, excluded)
            await (copier.upload(places, target.path) if is_upload else copier.download(places, target))
        session.notes.clear()

    session.run(work)


def _machine_of(places: Sequence[Place], target: Place) -> str:
    """Return the machine that one side of a copy names."""
    machines = {each.target for each in places}
    if target.target is not None and machines == {None}:
        return target.target
    if target.target is None and len(machines) == 1 and (machine := machines.pop()) is not None:
        return machine
    raise CommandError(
        ExitCode.USAGE,
        "one side of a copy is on a machine, and the other is here",
        "Write TARGET:path for a path on a machine: rentgpu cp model.pt sweep-3:models/",
    )


def _check(places: Sequence[Place], target: Place) -> None:
    if any(each.is_stream for each in (*places, target)) and len(places) > 1:
        raise CommandError(ExitCode.USAGE, "- is copied alone")
    if target.target is None and len(places) > 1 and not Path(target.path).is_dir():
        raise CommandError(ExitCode.USAGE, f"several sources need a folder, and {target.path!r} is none")


class _Copier:
    """Copies over one shell."""

    def __init__(self, session: Session, shell: AsyncShell, excluded: Sequence[str]) -> None:
        self._session = session
        self._shell = shell
        self._excluded = excluded

    async def upload(self, places: Sequence[Place], path: str) -> None:
        """Copy to the machine."""
        seconds = self._session.options.seconds
        if places[0].is_stream:
            await self._upload_stream(path)
            return
        is_folder = path.endswith("/") or path == "" or (await self._shell.run(f"test -d {shlex.quote(path)}")).ok
        if len(places) > 1 and not is_folder:
            raise CommandError(ExitCode.USAGE, f"several sources need a folder, and {path!r} is none on the machine")
        for each in places:
            remote = f"{path.rstrip('/') or ('/' if path else '.')}/{_name_of(each)}" if is_folder else path
            show = progress_of(self._session.notes, f"uploading {each.path}")
            await self._shell.upload(each.path, remote, exclude=self._excluded, timeout=seconds, on_progress=show)

    async def _upload_stream(self, path: str) -> None:
        quoted = shlex.quote(path)
        if path == "" or (await self._shell.run(f"test -d {quoted}")).ok:
            raise CommandError(ExitCode.USAGE, f"stdin needs the name of a file, and {path or '.'!r} is a folder")
        await self._pipe(f"cat > {quoted}.part", stdin=0)
        # In a command of its own, because a lost connection is an end of the input for the first.
        await self._shell.run(f"mv -f -- {quoted}.part {quoted}", check=True)

    async def download(self, places: Sequence[Place], target: Place) -> None:
        """Copy from the machine."""
        seconds = self._session.options.seconds
        if target.is_stream:
            await self._pipe(f"cat -- {shlex.quote(places[0].path)}", stdout=1)
            return
        for each in places:
            local = _local_path(each, target.path)
            show = progress_of(self._session.notes, f"downloading {each.path}")
            await self._shell.download(each.path, local, timeout=seconds, on_progress=show)

    async def _pipe(self, command: str, *, stdin: int | None = None, stdout: int | None = None) -> None:
        seconds = self._session.options.seconds
        with writing_output("the copy was ended"):
            await self._shell.pipe(command, stdin=stdin, stdout=stdout, check=True, timeout=seconds)


def _name_of(source: Place) -> str:
    return Path(source.path).resolve().name


def _local_path(source: Place, path: str) -> Path:
    """Return where a copy from the machine goes: into a folder under its own name, as with cp."""
    local = Path(path)
    if local.is_dir() or path.endswith("/"):
        return local / source.path.rstrip("/").rpartition("/")[2]
    return local
