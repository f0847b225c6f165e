"""The container's side of jobs, run by a shell of this machine, without a connection."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from openssh import missing
from until import until

from netmind_rentgpu.ssh import job_scripts
from netmind_rentgpu.ssh.job_scripts import FoundJob, answer_of, given_to_job, job_action, jobs_in, new_job_id

SHELLS = ("/bin/dash", "/bin/bash", "/bin/busybox sh")


@dataclass
class JobFolder:
    """A home folder, and the shell that runs `job.sh` there.

    Attributes:
        path: the programs that the shell finds.
        variables: what the login has in its environment beside the usual.
        id: the id of its first job, which no other test uses: by its id, a job's processes are found on the whole machine.
    """

    home: Path
    path: str = field(default_factory=lambda: os.environ["PATH"])
    id: str = field(default_factory=new_job_id)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def jobs(self) -> Path:
        return self.home / ".netmind_rentgpu" / "jobs"

    async def act(self, action: str, *arguments: str | int, given: bytes = b"") -> bytes:
        """Run an action, and return what it prints; stderr has to stay empty."""
        output, errors = await self.try_to_act(action, *arguments, given=given)
        assert errors == b"", errors
        return output

    async def try_to_act(self, action: str, *arguments: str | int, given: bytes = b"") -> tuple[bytes, bytes]:
        ready = job_action(action, *arguments, given=given)
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", ready.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"HOME": str(self.home), "PATH": self.path, "SHELL": "/bin/sh", **self.variables},
            cwd=self.home,
            start_new_session=True,
        )
        async with asyncio.timeout(120):
            return await process.communicate(ready.input)

    async def start(self, command: str, name: str = "mine", job_id: str = "", **options: object) -> str:
        """Start a job; return the first word of the answer."""
        job_id = job_id or self.id
        values = {"environment": None, "directory": None, "given": None, **options}
        given = given_to_job(job_id, command, **values)  # type: ignore[arg-type]  # the caller's options
        return answer_of((await self.act("start", name, job_id, given=given)).decode())[0]

    async def found(self, action: str = "status", *arguments: int, name: str = "mine", job_id: str = "") -> FoundJob:
        """Run an action that describes the job."""
        job_id = job_id or self.id
        (found,) = jobs_in((await self.act(action, name, job_id, *arguments)).decode())
        assert found.id == job_id
        return found

    async def until_written(self, size: int) -> None:
        """Wait until the job has written so much to stdout."""
        await until(lambda: (self.jobs / "mine" / "stdout").stat().st_size >= size)


def use_shell(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `job.sh` run in another shell than this machine's /bin/sh."""
    program = shell.split(maxsplit=1)[0]
    if shutil.which(program) is None:
        missing(program)
    monkeypatch.setattr(job_scripts, "_LINE", job_scripts._LINE.replace("/bin/sh", shell))
    monkeypatch.setattr(job_scripts, "_SCRIPT", job_scripts._SCRIPT.replace("/bin/sh", shell))
