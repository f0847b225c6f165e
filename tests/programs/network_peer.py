"""Serve or connect in a container: network_peer.py serve PORT TEXT, echo PORT, shout PORT, or exchange HOST PORT [IN OUT].

A server listens on the loopback interface, prints its port, and serves until it is ended. A client prints what the server
sent, or the name of the error.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def pieces(connected: socket.socket) -> Iterator[bytes]:
    while piece := connected.recv(2**16):
        yield piece


def serve(port: str, answer: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connected, _ = listener.accept()
            threading.Thread(target=run, args=(answer, connected), daemon=True).start()


def run(answer: Callable[[socket.socket], None], connected: socket.socket) -> None:
    with connected:
        answer(connected)


def echo(connected: socket.socket) -> None:
    for piece in pieces(connected):
        connected.sendall(piece)


def shout(connected: socket.socket) -> None:
    """Answer only once the client has ended its half of the connection."""
    connected.sendall(b"".join(pieces(connected)).upper())


def exchange(host: str, port: str, entered: str = "/dev/null", received: str = "/dev/stdout") -> None:
    """Send a file and its end, and keep what the server sends meanwhile and afterwards."""
    words = Path(entered).read_bytes()
    try:
        with socket.create_connection((host, int(port)), timeout=60) as connected:

            def send() -> None:
                connected.sendall(words)
                connected.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send)
            sending.start()
            with Path(received).open("wb") as file:
                file.writelines(pieces(connected))
            sending.join()
    except OSError as error:
        print(errno.errorcode.get(error.errno or 0, type(error).__name__))


mode, *arguments = sys.argv[1:]
if mode == "serve":
    text = arguments[1].encode()
    serve(arguments[0], lambda connected: connected.sendall(text))
elif mode == "exchange":
    exchange(*arguments)
else:
    serve(arguments[0], {"echo": echo, "shout": shout}[mode])
