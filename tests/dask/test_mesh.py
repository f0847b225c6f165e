"""The mesh of a cluster, with rentals that fail as told: ports that are taken, and connections that are broken."""

from __future__ import annotations

from typing import Any

import pytest
from until import until

from netmind_rentgpu import RentalEndedError, SSHError
from netmind_rentgpu.dask import mesh as mesh_module
from netmind_rentgpu.dask.mesh import Mesh


class Forward:
    """A port that is forwarded."""

    def __init__(self, ports: set[int], port: int) -> None:
        self._ports, self._port = ports, port
        ports.add(port)

    async def close(self) -> None:
        self._ports.discard(self._port)


class Machine:
    """A rental whose forwards fail by errors that a test has given, the first one first."""

    def __init__(self) -> None:
        self.name = "machine"
        self.ended = False
        self.lost = False
        self.there: set[int] = set()
        self.back: set[int] = set()
        self.errors: list[Exception] = []

    @property
    def shell(self) -> Machine:
        return self

    async def _check_forwarding(self) -> None:
        pass

    async def forward(self, *, local_port: int, remote_port: int) -> Forward:
        assert local_port == remote_port
        return Forward(self.there, local_port)

    async def reverse_forward(self, *, remote_port: int, local_port: int) -> Forward:
        assert local_port == remote_port
        if self.errors:
            raise self.errors.pop(0)
        return Forward(self.back, remote_port)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "_BETWEEN_ATTEMPTS", 0.001)


async def joined(mesh: Mesh, machine: Any) -> Any:
    return await mesh.join(machine, 2, 7)


def refused() -> SSHError:
    return SSHError("the port is taken", stage="connection")


async def joined_beside_a_broken_one(mesh: Mesh, errors: int) -> tuple[Machine, Any]:
    """Let a machine join while the connection of another one is broken, and return that and the new member."""
    broken = Machine()
    await joined(mesh, broken)
    broken.lost, broken.errors = True, [refused() for _ in range(errors)]
    return broken, await joined(mesh, Machine())


async def test_machines_reach_the_scheduler_and_each_others_workers_until_they_leave() -> None:
    mesh, first, second = Mesh(), Machine(), Machine()
    of_first, of_second = await joined(mesh, first), await joined(mesh, second)
    assert first.back == {7, *(ports.worker for ports in of_second.ports)}
    assert second.back == {7, *(ports.worker for ports in of_first.ports)}
    assert len(first.there) == len(second.there) == 6
    await mesh.leave(of_second)
    assert (second.there, second.back, first.back) == (set(), set(), {7})


async def test_machine_on_which_a_port_is_taken_joins_with_others() -> None:
    mesh, machine = Mesh(), Machine()
    machine.errors = [refused(), refused()]
    await joined(mesh, machine)
    assert (machine.back, len(machine.there)) == ({7}, 6)


async def test_machine_on_which_ports_are_always_taken_cannot_join() -> None:
    mesh, machine = Mesh(), Machine()
    machine.errors = [refused() for _ in range(10)]
    with pytest.raises(SSHError, match="taken"):
        await joined(mesh, machine)
    assert (len(machine.errors), machine.there) == (7, set())


async def test_machine_whose_connection_is_broken_is_reached_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "_LONGEST_WAIT", 0.0)
    broken, member = await joined_beside_a_broken_one(Mesh(), errors=6)
    await until(lambda: broken.back == {7, *(ports.worker for ports in member.ports)})


async def test_machine_that_leaves_is_not_waited_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "_LONGEST_WAIT", 0.0)
    mesh = Mesh()
    broken, member = await joined_beside_a_broken_one(mesh, errors=10_000)
    await mesh.leave(member)
    assert broken.back == {7}


async def test_machine_that_has_ended_keeps_no_other_from_joining() -> None:
    mesh, ended = Mesh(), Machine()
    await joined(mesh, ended)
    ended.errors = [RentalEndedError("it is over", name="machine", container_id=None) for _ in range(2)]
    machine = Machine()
    await joined(mesh, machine)
    assert len(machine.back) == 3
