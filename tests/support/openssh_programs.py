"""The client programs of OpenSSH: ssh, scp and sftp."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from openssh import program as path_of


class OpenSSHPrograms:
    """The programs of OpenSSH without this machine's own configuration, and with a password from a script."""

    def __init__(self, folder: Path, port: int, password: str) -> None:
        self.folder = folder
        self.port = port
        folder.mkdir()
        script = folder / "password"
        script.write_text(f"#!/bin/sh\necho '{password}'\n")
        script.chmod(0o700)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "SSH_ASKPASS": str(script),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": ":0",
        }

    async def start(self, program: str, *arguments: str) -> asyncio.subprocess.Process:
        path = path_of(program)
        options = {
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "accept-new",
            "PubkeyAuthentication": "no",
            "NumberOfPasswordPrompts": "1",
            "LogLevel": "INFO",
            "Port": self.port,
            "ExitOnForwardFailure": "yes",
        }
        return await asyncio.create_subprocess_exec(
            path,
            *("-F", "/dev/null"),
            *(f"-o{name}={value}" for name, value in options.items()),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=self.folder,
        )

    async def run(self, program: str, *arguments: str, entered: str = "") -> tuple[int | None, str, str]:
        process = await self.start(program, *arguments)
        async with asyncio.timeout(60):
            out, err = await process.communicate(entered.encode())
        return process.returncode, out.decode(), err.decode()
