"""Hides what only POSIX has from this package alone, when it is imported; sys.argv[1] names the platform to claim."""

from __future__ import annotations

import builtins
import importlib
import os
import signal
import sys
from types import ModuleType
from typing import Any

# What is imported with the hidden modules still there.
OTHERS = (
    *("aiohttp", "anyio._backends._asyncio", "asyncssh", "attrs", "cattrs", "click", "orjson", "psutil", "pytest"),
    "rich.console",
)
MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
CALLS = (
    *("chown", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getpgid", "getuid", "killpg", "link"),
    *("openpty", "pread", "pwrite", "register_at_fork", "set_blocking", "setsid", "tcsetpgrp", "ttyname", "uname"),
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
)
SIGNALS = (
    *("SIGALRM", "SIGBUS", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIG_BLOCK"),
    *("pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigwait"),
)


class Without(ModuleType):
    """A module, but for some of its names."""

    def __init__(self, real: ModuleType, *hidden: str, **others: Any) -> None:
        super().__init__(real.__name__)
        self.real, self.hidden = real, hidden
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        if name in self.hidden:
            raise AttributeError(f"module {self.real.__name__!r} has no attribute {name!r}", name=name, obj=self)
        return getattr(self.real, name)


def kill(process_id: int, number: int) -> None:
    raise SystemExit(f"os.kill({process_id}, {number}), which would end the process on Windows")


SEEN = {
    "os": Without(os, *CALLS, kill=kill),
    "signal": Without(signal, *SIGNALS),
    "sys": Without(sys, platform=sys.argv[1]),
}
import_really = builtins.__import__


def import_seen(name: str, importer: Any = None, *arguments: Any, **keywords: Any) -> Any:
    if name in SEEN and importer and importer["__name__"].startswith("netmind_rentgpu"):
        return SEEN[name]
    return import_really(name, importer, *arguments, **keywords)


for other in OTHERS:
    importlib.import_module(other)
# None: it cannot be imported.
sys.modules.update(dict.fromkeys(MODULES))
builtins.__import__ = import_seen
