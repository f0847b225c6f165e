"""The program that holds a container's network namespace, and that runs commands in it. It uses the standard library alone.

    python -IS namespace_program.py hold                     with an end of a socketpair as its standard input
    python -IS namespace_program.py enter PID COMMAND ...    as the command's first process

A process with several threads cannot enter a user namespace, and a process stays in its network namespace. So each is a
process of its own: the emulator gets the namespace's sockets from the holder.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_NAMESPACES = {"user": _NEW_USER, "net": _NEW_NETWORK}
# The ioctl that sets the flags of a network interface, and the flag that it is up.
_SET_FLAGS, _IS_UP = 0x8914, 1
_CANNOT_ENTER = 125


def _unshare(flags: int) -> None:
    """Move this process to new namespaces."""
    if sys.version_info >= (3, 12) and sys.platform == "linux":
        os.unshare(flags)
    else:
        _call_libc("unshare", flags)


def _enter(descriptor: int, kind: int) -> None:
    """Move this process to the namespace of a descriptor."""
    if sys.version_info >= (3, 12) and sys.platform == "linux":
        os.setns(descriptor, kind)
    else:
        _call_libc("setns", descriptor, kind)


def _call_libc(name: str, *arguments: int) -> None:
    import ctypes

    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _isolate() -> None:
    """Move this process to a new network namespace, whose loopback interface is up."""
    if sys.platform == "win32":
        raise NotImplementedError
    # All before the namespace exists, because root without privileges may lose the access to these files there.
    import fcntl
    import socket
    import struct

    def start_loopback() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH22x", b"lo", _IS_UP))

    try:
        # A user who may do this needs no user namespace, in which root could not act as other users.
        _unshare(_NEW_NETWORK)
        start_loopback()
    except OSError:
        user, group = os.geteuid(), os.getegid()
        _unshare(_NEW_USER | _NEW_NETWORK)
        # A user without privileges may map a group only if the processes cannot change their groups.
        maps = {"setgroups": b"deny", "gid_map": b"%d %d 1" % (group, group), "uid_map": b"%d %d 1" % (user, user)}
        for name, content in maps.items():
            with open(f"/proc/self/{name}", "wb") as file:
                file.write(content)
        start_loopback()


def _hold() -> None:
    """Create a namespace, report it, and create sockets in it until the emulator closes its end of the socketpair.

    A request has a number and a family of addresses. Its answer repeats the number, and has a socket or the number of an
    error.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    import socket

    with socket.socket(fileno=0) as emulator:
        try:
            _isolate()
        except OSError as error:
            emulator.send(str(error).encode())
            return
        emulator.send(b"ready")
        while request := emulator.recv(64):
            number, family = request.split()
            try:
                made = socket.socket(int(family), socket.SOCK_STREAM)
            except OSError as error:
                emulator.send(b"%b %d" % (number, error.errno or 0))
                continue
            with made:
                socket.send_fds(emulator, [number], [made.fileno()])


def _execute(holder: str, command: list[str]) -> None:
    """Replace this process by a command in the namespace of a holder, and change nothing else of the process."""
    if sys.platform == "win32":
        raise NotImplementedError
    # Without its wrapper `signal`, which takes half as long to import as Python takes to start.
    signals = __import__("_signal")
    # Python handles the first, ignores the others, and adds LC_CTYPE to its environment.
    if signals.getsignal(signals.SIGINT) != signals.SIG_IGN:
        signals.signal(signals.SIGINT, signals.SIG_DFL)
    signals.signal(signals.SIGPIPE, signals.SIG_DFL)
    signals.signal(signals.SIGXFSZ, signals.SIG_DFL)
    with open("/proc/self/environ", "rb") as file:
        variables = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    for name, kind in _NAMESPACES.items():
        path = f"/proc/{holder}/ns/{name}"
        # A process cannot enter the user namespace that it is in.
        if not os.path.samefile(path, f"/proc/self/ns/{name}"):
            _enter(os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind)
    os.execve(command[0], command, variables)  # noqa: S606  # the command comes from the container's user


def main(arguments: list[str]) -> None:
    """Run as the holder of a namespace, or as a command in it."""
    if arguments == ["hold"]:
        _hold()
        return
    try:
        _execute(arguments[1], arguments[2:])
    except OSError as error:
        print(f"could not enter the container's network namespace: {error}", file=sys.stderr)
        sys.exit(_CANNOT_ENTER)


if __name__ == "__main__":
    main(sys.argv[1:])
