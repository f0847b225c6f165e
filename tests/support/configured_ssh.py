"""OpenSSH's client with a configuration of its own, as `rentgpu containers ssh-config` prints it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from openssh import program


class ConfiguredSSH:
    """OpenSSH's client with a configuration, and a program that answers its question for the password.

    Attributes:
        asked: a file that exists once the password was asked for.
    """

    def __init__(self, folder: Path, password: str) -> None:
        self._folder = folder
        self.asked = folder / "asked"
        script = folder / "password.sh"
        script.write_text(f"#!/bin/sh\ntouch '{self.asked}'\necho '{password}'\n")
        script.chmod(0o700)
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "SSH_ASKPASS": str(script),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": ":0",
        }

    def run(self, config: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the client."""
        path = self._folder / "config"
        path.write_text(config)
        return subprocess.run(
            [program("ssh"), "-F", str(path), *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
