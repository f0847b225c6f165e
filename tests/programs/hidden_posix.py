"""Hides what only POSIX has, when it is imported; sys.argv[1] names the platform to claim."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import sys

# What others do with those names when they are imported is theirs.
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

_kill = os.kill


def kill(process_id: int, number: int) -> None:
    """Let psutil use its own way, which is another one on Windows."""
    if sys._getframe(1).f_globals["__name__"].startswith("netmind_rentgpu"):
        raise SystemExit(f"os.kill({process_id}, {number}), which would end the process on Windows")
    _kill(process_id, number)


def hide() -> None:
    for name in OTHERS:
        importlib.import_module(name)
    platform.node()
    for module, names in ((os, CALLS), (signal, SIGNALS)):
        for name in names:
            vars(module).pop(name, None)
    # None: it cannot be imported.
    sys.modules.update(dict.fromkeys(MODULES))
    os.kill = kill
    sys.platform = sys.argv[1]


hide()
