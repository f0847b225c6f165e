"""Arguments of shells that cannot be used or sent: each is refused, and names the argument."""

from __future__ import annotations

from typing import Any

import pytest

from netmind_rentgpu import AsyncRentGPU, AsyncShell, InvalidArgumentError

# A surrogate, which has no UTF-8 form.
HALF = "\ud800"


@pytest.mark.parametrize("argument", [{"container": "1"}, {"container": True}, {"timeout": 0}, {"timeout": None}])
async def test_invalid_container_or_timeout_is_refused(gpu: AsyncRentGPU, argument: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        gpu.ssh(**{"container": 1, **argument})


async def test_password_that_cannot_be_encoded_is_refused(site: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="password"):
        site.gpu.ssh(site.container, password=HALF)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("command", ""), ("command", "a\0b"), ("timeout", 0), ("timeout", True), ("max_output", -1), ("max_output", 1.5)],
)
async def test_invalid_argument_of_run_is_refused(shell: AsyncShell, argument: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=argument):
        await shell.run(**{"command": "true", argument: value})


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda shell: shell.run(HALF), "command"),
        (lambda shell: shell.run(7), "command"),
        (lambda shell: shell.run("x" * 200_000), "command"),
        (lambda shell: shell.run("true", input=HALF), "input"),
        (lambda shell: shell.run("true", input=7), "input"),
        (lambda shell: shell.run("true", environment={"A": HALF}), "environment"),
        (lambda shell: shell.run("true", environment={"A": "x" * 200_000}), "environment"),
        (lambda shell: shell.run("true", environment=["A"]), "environment"),
        (lambda shell: shell.upload("/etc/hostname", HALF), "remote"),
        (lambda shell: shell.upload("/etc/\0", "x"), "local"),
        (lambda shell: shell.download("x", None), "local"),
        (lambda shell: shell.forward(local_port=0, remote_port=0), "remote_port"),
        (lambda shell: shell.forward(local_port=70_000, remote_port=1), "local_port"),
        (lambda shell: shell.forward(local_port=0, remote_port=1, remote_host=""), "remote_host"),
        (lambda shell: shell.reverse_forward(remote_port=0, local_port=1, local_host=HALF), "local_host"),
    ],
    ids=map(str, range(15)),
)
async def test_argument_that_cannot_be_sent_is_refused_and_leaves_the_shell_usable(
    shell: AsyncShell, call: Any, argument: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=argument):
        await call(shell)
    assert (await shell.run("true")).ok
