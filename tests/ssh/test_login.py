"""Logins to a container: passwords, host keys, endpoints, waits until the login works, and errors."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import canaries
import pytest
from banners import listening, says
from hostile import full_listener
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    ClientStateError,
    ConfigurationError,
    Container,
    PaymentType,
    SSHError,
    SSHTimeoutError,
    StateFileError,
    WaitTimeoutError,
)
from netmind_rentgpu.emulator import Emulator, Fault, World
from netmind_rentgpu.errors import ContainerGoneError
from netmind_rentgpu.ssh import credentials, login
from netmind_rentgpu.state_file import State

LONG = 60


async def rented(gpu: AsyncRentGPU, name: str = "mine", password: str = canaries.PASSWORD) -> Container:
    auth = await gpu.auths.ensure(password)
    machine = max(await gpu.machines.list(), key=lambda machine: machine.gpu_count or 0)
    made = await gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )
    return await gpu.containers.get(made.id)


async def refused(opening: Any, stage: str) -> SSHError:
    """Check that a shell cannot be opened, and at which stage that fails."""
    with pytest.raises(SSHError) as caught:
        async with opening:
            pytest.fail("the shell was opened")
    assert caught.value.stage == stage
    return caught.value


def at(container: Container, host: str, port: int) -> Container:
    return attrs.evolve(container, ssh=f"ssh root@{host} -p {port}")


async def test_login_uses_the_password_of_the_auth_and_no_other_works(site: Any) -> None:
    async with site.gpu.ssh(site.container.id if site.kind == "emulator" else site.container) as shell:
        assert (await shell.run("true")).ok
    error = await refused(site.gpu.ssh(site.container, password="another-password"), "password")
    assert "refused" in str(error)
    # The password of another container does not open this one.
    other = await site.gpu.auths.create("the-others-password")
    await refused(site.gpu.ssh(attrs.evolve(site.container, auth_id=other.id)), "password")
    stranger = attrs.evolve(site.container, ssh=site.container.ssh.replace("root@", "no-such-user@"))
    await refused(site.gpu.ssh(stranger), "password")
    async with site.gpu.ssh(site.container) as shell:
        assert (await shell.run("true")).ok


async def test_login_without_an_auth_needs_a_password_argument(gpu: AsyncRentGPU) -> None:
    container = await rented(gpu)
    assert "pass password=" in str(await refused(gpu.ssh(attrs.evolve(container, auth_id=None)), "password"))
    async with gpu.ssh(attrs.evolve(container, auth_id=None), password=canaries.PASSWORD) as shell:
        assert (await shell.run("true")).ok


async def test_server_with_another_host_key_never_receives_the_password(site: Any, tmp_path: Path) -> None:
    import asyncssh

    async with site.gpu.ssh(site.container):
        pass
    passwords: list[str] = []

    class Impostor(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            passwords.append(password)
            return True

    for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"):
        key = asyncssh.generate_private_key(kind)
        async with asyncssh.listen("127.0.0.1", 0, server_factory=Impostor, server_host_keys=[key]) as impostor:
            there = at(site.container, "127.0.0.1", impostor.get_port())
            error = await refused(site.gpu.ssh(there), "host key")
            assert "accept_new_host_key=True" in str(error)
            assert key.get_fingerprint() in str(error)
            with pytest.raises(SSHError, match="host key has changed"):
                await site.gpu.containers._log_in(there, 0)
            assert passwords == []
    # The original key still works.
    async with site.gpu.ssh(site.container) as shell:
        assert (await shell.run("true")).ok


async def test_changed_host_key_is_refused_until_accepted(emulator: Emulator, state: Path) -> None:
    async with (
        Emulator(
            seed=7, boot_seconds=0, token=canaries.TOKEN, ssh=True, world=World(restart_host_key="changed")
        ) as other,
        AsyncRentGPU(other.token, base_url=other.url, state=state) as gpu,
    ):
        container = await rented(gpu)
        async with gpu.ssh(container):
            pass
        await gpu.containers.restart(container.id)
        await refused(gpu.ssh(container), "host key")
        with pytest.raises(SSHError, match="host key has changed"):
            await gpu.containers.wait_ready(container.id, timeout=LONG)
        async with gpu.ssh(container, accept_new_host_key=True):
            pass
        async with gpu.ssh(container):
            pass
        assert (await gpu.containers.wait_ready(container.id, timeout=LONG)).id == container.id


async def test_container_with_a_recycled_id_after_a_reset_can_be_logged_into(emulator: Emulator, state: Path) -> None:
    for _ in range(2):
        async with AsyncRentGPU(emulator.token, base_url=emulator.url, state=state) as gpu:
            container = await rented(gpu)
            async with gpu.ssh(container) as shell:
                assert (await shell.run("echo in")).stdout == "in\n"
        emulator.reset()


async def test_host_keys_belong_to_a_container_of_an_account(
    emulator: Emulator, gpu: AsyncRentGPU, state: Path
) -> None:
    first, second = await rented(gpu), await rented(gpu, "second")
    for container in (first, second):
        async with gpu.ssh(container):
            pass
    # A recycled address: the endpoint of the first container now leads to the second.
    await refused(gpu.ssh(attrs.evolve(first, ssh=second.ssh)), "host key")
    # Another account, on another service, has another container of that id.
    async with Emulator(seed=8, boot_seconds=0, token="another-accounts-token", ssh=True) as other:
        async with AsyncRentGPU(other.token, base_url=other.url, state=state) as theirs:
            async with theirs.ssh(await rented(theirs)):
                pass
    async with gpu.ssh(first):
        pass
    with sqlite3.connect(state) as connection:
        rows = connection.execute("SELECT account, container_id, public_key FROM host_keys").fetchall()
    connection.close()
    assert [row[1] for row in rows] == [first.id, second.id, first.id]
    assert len({row[0] for row in rows}) == 2
    assert canaries.TOKEN not in repr(rows)
    assert canaries.PASSWORD.encode() not in state.read_bytes()


async def test_host_key_recorded_meanwhile_by_another_login_wins(
    gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await rented(gpu)
    pin = State.pin_host_key

    async def late(self: State, container_id: int, key: str, *, replace: bool = False) -> str:
        await pin(self, container_id, "ssh-ed25519 AAAAanother")
        return await pin(self, container_id, key, replace=replace)

    monkeypatch.setattr(State, "pin_host_key", late)
    error = await refused(gpu.ssh(container), "host key")
    assert "at the same time" in str(error)


async def test_unreachable_endpoint_raises_with_its_stage(gpu: AsyncRentGPU) -> None:
    container = await rented(gpu)

    def there(port: int, host: str = "127.0.0.1", timeout: float = 0.3) -> Any:
        return gpu.ssh(at(container, host, port), timeout=timeout)

    assert "no connection" in str(await refused(there(1), "connection"))
    assert "name cannot be resolved" in str(await refused(there(22, "no-such-name.invalid", LONG), "name"))
    async with listening(says()) as silent:
        assert isinstance(error := await refused(there(silent), "connection"), SSHTimeoutError)
        assert isinstance(error, TimeoutError)
    async with listening(says(b"HTTP/1.1 400 No\r\n\r\n", stays=False)) as web:
        await refused(there(web, timeout=LONG), "connection")
    async with listening(says(stays=False)) as shut:
        await refused(there(shut, timeout=LONG), "connection")
    with full_listener() as url:
        assert isinstance(await refused(there(int(url.rpartition(":")[2])), "connection"), SSHTimeoutError)


async def test_container_without_an_endpoint_is_fetched_again(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rented(gpu)
    async with gpu.ssh(attrs.evolve(container, ssh=None)) as shell:
        assert shell.container == container
    await gpu.containers.stop(container.id)
    error = await refused(gpu.ssh(container.id), "name")
    assert "its ssh field is empty" in str(error)
    error = await refused(gpu.ssh(attrs.evolve(container, ssh="ask support")), "name")
    assert "its ssh field is empty" in str(error)
    await gpu.containers.delete(container.id)
    await refused(gpu.ssh(container), "connection")


async def test_missing_asyncssh_is_an_error_that_names_the_extra(
    gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await rented(gpu)
    monkeypatch.setattr(credentials, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[ssh\]'"):
        gpu.ssh(container)
    with pytest.raises(ConfigurationError, match="asyncssh"):
        await gpu.containers.wait_ready(container.id, timeout=LONG)


@pytest.mark.slow
async def test_login_cancelled_at_any_step_leaves_no_connection(full: bool, site: Any) -> None:
    before = asyncio.all_tasks()
    for steps in [*range(40), *range(40, 400, 20)][:: 1 if full else 5]:
        shell = site.shell()
        task = asyncio.create_task(shell.__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await shell.close()
    await until(lambda: all(task.done() for task in asyncio.all_tasks() - before))
    async with site.shell() as shell:
        assert (await shell.run("true")).ok


async def test_shell_refuses_another_event_loop(gpu: AsyncRentGPU) -> None:
    async with gpu.ssh(await rented(gpu)) as shell:
        for call in (lambda: shell.run("true"), shell.close):

            def elsewhere(call: Callable[[], Awaitable[Any]] = call) -> None:
                with pytest.raises(ClientStateError, match="another event loop"):
                    asyncio.run(call())  # type: ignore[arg-type]

            await asyncio.to_thread(elsewhere)
        assert (await shell.run("true")).ok


# Waits until the login works.


async def test_wait_ready_returns_once_the_login_works(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        Emulator(seed=7, boot_seconds=0.2, token=canaries.TOKEN, ssh=True) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, state=state) as gpu,
    ):
        container = await rented(gpu)
        ready = await gpu.containers.wait_ready(container.id, timeout=LONG)
        async with gpu.ssh(ready) as shell:
            assert (await shell.run("true")).ok
        # With a wrong password the container is reachable, and not ready.
        other = await gpu.auths.create("not-the-password")
        get = gpu.auths.get
        tried: list[int] = []

        def get_other(auth_id: int, **_: Any) -> Any:
            tried.append(auth_id)
            return get(other.id)

        monkeypatch.setattr(gpu.auths, "get", get_other)
        assert await gpu.containers.wait_reachable(container.id, timeout=LONG)
        with pytest.raises(WaitTimeoutError, match=r"no login succeeded within 3 s.*password was refused"):
            await gpu.containers.wait_ready(container.id, timeout=3)
        tried.clear()
        waiting = asyncio.create_task(gpu.containers.wait_ready(container.id, timeout=LONG))
        await until(lambda: bool(tried))
        monkeypatch.setattr(gpu.auths, "get", get)
        assert (await waiting).id == container.id
        await gpu.containers.delete(container.id)
        with pytest.raises(ContainerGoneError):
            await gpu.containers.wait_ready(container.id, timeout=LONG)


async def test_container_that_is_never_reachable_is_never_ready(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    emulator.faults.add(Fault("never reachable"))
    container = await rented(gpu)
    with pytest.raises(WaitTimeoutError, match="no connection"):
        await gpu.containers.wait_ready(container.id, timeout=2)


@pytest.mark.parametrize("form", ["ssh user@host -p port", "ssh -p port user@host", "host:port", "url"])
async def test_every_form_of_the_ssh_field_leads_to_the_container(state: Path, form: Any) -> None:
    async with (
        Emulator(seed=7, boot_seconds=0, token=canaries.TOKEN, ssh=True, world=World(ssh=form)) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, state=state) as gpu,
    ):
        container = await rented(gpu)
        async with gpu.ssh(await gpu.containers.wait_ready(container.id, timeout=LONG)) as shell:
            assert (await shell.run("whoami")).stdout == "root\n"


@pytest.mark.slow
@pytest.mark.xdist_group("machine")
async def test_many_containers_are_logged_into_at_once(full: bool, state: Path) -> None:
    many = 200 if full else 40
    async with (
        Emulator(seed=7, boot_seconds=0.5, machines=200, token=canaries.TOKEN, ssh=True) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, state=state) as gpu,
    ):
        auth = await gpu.auths.ensure(canaries.PASSWORD)
        places = [machine.node_name for machine in await gpu.machines.list() for _ in range(machine.gpu_count or 0)]

        async def rent_and_echo(number: int) -> str:
            container = await gpu.containers.create(
                name=f"n{number}",
                auth_id=auth.id,
                node_name=places[number],
                image_template_id=1,
                payment_type=PaymentType.USD,
            )
            ready = await gpu.containers.wait_ready(container.id, timeout=500)
            async with gpu.ssh(ready, timeout=120) as shell:
                return (await shell.run(f"echo {number}", check=True)).stdout

        echoed = await asyncio.gather(*(rent_and_echo(number) for number in range(many)))
        assert echoed == [f"{number}\n" for number in range(many)]


# The state file.


async def test_unusable_state_file_raises_a_state_file_error(gpu: AsyncRentGPU, state: Path) -> None:
    container = await rented(gpu)
    state.parent.mkdir(parents=True)
    state.write_bytes(b"no database" * 1000)
    for call in (gpu.ssh(container).__aenter__, lambda: gpu.containers.wait_ready(container.id, timeout=LONG)):
        with pytest.raises(StateFileError, match=r"cannot use the state file .*: file is not a database"):
            await call()
    state.unlink()
    async with gpu.ssh(container):
        pass


def test_recorded_host_key_type_is_preferred() -> None:
    assert login._preferred(None) == "default"
    assert login._preferred("ssh-ed25519 AAAA") == "^ssh-ed25519"
    assert login._preferred("ssh-rsa AAAA") == "^rsa-sha2-512,rsa-sha2-256"
