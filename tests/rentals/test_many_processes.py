"""A hundred processes that share one state file, and some that are killed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from renters import Service, renting


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with renting(tmp_path, machines=400) as service:
        yield service


# They are forked from one process, which has imported all there is and has called nothing.
MANY = """
import netmind_rentgpu.client, netmind_rentgpu.sync, netmind_rentgpu.rentals.rental, asyncssh
import netmind_rentgpu.ssh.commands, netmind_rentgpu.ssh.login, netmind_rentgpu.waiting.reachable

def fail(*error):
    traceback.print_exception(*error)
    sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)

sys.excepthook = fail

# All would else go for the same machine, the cheapest.
ANY = dict(image="PyTorch 2.4", timeout=60, key=lambda _: random.random())

class Gate:
    '''What each of some processes waits at until all have come.'''

    def __init__(self, count):
        self.count = count
        self.coming, self.come = os.pipe()
        self.waiting, self.open = os.pipe()

    def passed(self):
        os.write(self.come, b"x")
        os.close(self.open)
        os.read(self.waiting, 1)

    def wait(self):
        come = 0
        while come < self.count:
            come += len(os.read(self.coming, self.count - come))

    def lift(self):
        os.close(self.open)

def fork(number, work):
    '''Fork some that do something; return their ids.'''
    pids = []
    for _ in range(number):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    return pids

def ends(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""


async def test_a_hundred_processes_rent_and_return_at_once(service: Service) -> None:
    program = await service.run(
        f"""{MANY}
began = Gate(100)

def work():
    began.passed()
    with RentGPU() as gpu:
        with gpu.rent(**ANY) as rental:
            assert gpu.containers.get(rental.container.id).name == rental.name
            assert rental.name in [record.name for record in gpu.rentals.open()]

pids = fork(100, work)
began.wait()
began.lift()
print(set(ends(pids)))
""",
        measured=False,
    )
    program.assert_silent("{0}\n")
    service.emulator.assert_nothing_rented()
    # What was refused a moment ago is looked for once more.
    await service.assert_one_reap_clears()
    asked = service.emulator.requests
    assert len(asked.of("create_auth")) == 1
    # Nobody deleted what was another's.
    deleted = [request.path for request in asked.of("delete_container")]
    assert len(deleted) == len(set(deleted)) == len(service.emulator.charges) == 100


async def test_one_reap_deletes_what_the_killed_held_and_nothing_of_the_living(service: Service) -> None:
    program = await service.run(
        f"""{MANY}
held, over = Gate(30), Gate(10)

def work():
    with RentGPU() as gpu:
        with gpu.rent(**ANY) as rental:
            held.passed()
            assert gpu.containers.get(rental.container.id).name == rental.name
            assert rental.run("echo usable").stdout == "usable\\n"
            over.passed()

pids = fork(30, work)
held.wait()
before = set(rented())
assert len(before) == 30
killed = set(random.sample(pids, 20))
records = {{record.owner.process_id: record.container_id for record in on_record()}}
assert records.keys() == set(pids)
for pid in killed:
    os.kill(pid, signal.SIGKILL)
assert ends(killed) == [-signal.SIGKILL] * 20

# The others go on only when it is done.
with RentGPU() as gpu:
    report = gpu.rentals.reap(wait=True)
    assert report.clean and len(report.deleted) == 20 and not report.gone, report
    assert set(rented()) == {{records[pid] for pid in pids if pid not in killed}}
    assert gpu.rentals.reap(wait=True).deleted == ()
held.lift()
over.wait()
assert len(rented()) == 10
over.lift()
print(set(ends(pid for pid in pids if pid not in killed)))
""",
        measured=False,
    )
    program.assert_silent("{0}\n")
    await service.assert_nothing_left()
