"""Call each method of a synchronous shell once, and print the results."""

from __future__ import annotations

import socket

import preamble
from container_user import CONTAINER, HERE

from netmind_rentgpu import ClientStateError, RentGPU, Shell, SSHError, TransferProgress


def run_commands(shell: Shell) -> None:
    """Run commands that succeed, fail and stream."""
    print(shell.run("echo $NAME; cat", environment={"NAME": "you"}, input="and me").stdout)
    try:
        shell.run("exit 3", check=True)
    except SSHError as error:
        assert error.result is not None
        print(error.stage, error.result.exit_status)
    print(*(f"{line.stream}:{line}" for line in shell.stream("echo one; sleep 0.1; echo two >&2")))


def copy_files(shell: Shell) -> None:
    """Copy a folder to the container and back."""
    (HERE / "folder").mkdir()
    (HERE / "folder" / "up").write_bytes(b"x" * 1_000_000)
    news: list[TransferProgress] = []
    shell.upload(HERE / "folder", "copied/folder", on_progress=news.append)
    shell.download("copied", HERE / "down", on_progress=news.append)
    print((HERE / "down" / "folder" / "up").stat().st_size, len(news) > 2, news[-1].files_done)


def forward_ports(shell: Shell) -> None:
    """Send a greeting through a forwarded port each way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        forward = shell.forward(local_port=0, remote_port=server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", forward.local_port)) as client:
            client.sendall(b"hello")
            with server.accept()[0] as accepted:
                print(accepted.recv(5).decode())
        backward = shell.reverse_forward(remote_port=0, local_port=server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", backward.remote_port)) as client:
            with server.accept()[0] as accepted:
                accepted.sendall(b"hello back")
                print(client.recv(10).decode())


preamble.install()
with RentGPU() as gpu:
    with gpu.ssh(CONTAINER) as shell:
        run_commands(shell)
        copy_files(shell)
        forward_ports(shell)
    print(shell)
    try:
        shell.run("true")
    except ClientStateError as error:
        print(error)
    print(gpu.containers.get(CONTAINER).id == CONTAINER)
