"""Nine kinds of program that a new user writes, run as they stand against an emulator."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest
from nested_pytest import run_pytest
from programs import FOLDER, Program

from netmind_rentgpu import RentGPU
from netmind_rentgpu.emulator import Emulator, Fault, World

pytestmark = pytest.mark.slow

USERS = FOLDER / "users"
Run: TypeAlias = Callable[..., Awaitable[Program]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a user's program against an emulator that is served from a thread."""

    async def run(
        emulator: Emulator, file: str, *arguments: str, runner: str | None = None, **environment: str
    ) -> Program:
        folders = {name: str(tmp_path) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
        settings = {
            "NETMIND_API_KEY": emulator.token,
            "NETMIND_RENTGPU_STATE": str(tmp_path / "state.sqlite3"),
            **folders,
            **environment,
        }
        first = str(USERS / file)
        program = Program(
            file=f"users/{file}" if runner is None else runner,
            arguments=arguments if runner is None else [first, *arguments],
            environment=settings,
        )
        # Warnings are no errors in a notebook, because Jupyter's own libraries warn.
        await program.run(emulator.url, () if runner else ("-W", "error"))
        assert program.status == 0, f"{program.output}\n{program.errors}"
        return program

    return run


async def test_training_job_uploads_trains_and_fetches(run: Run, tmp_path: Path) -> None:
    with Emulator(seed=7, ssh=True, boot_seconds=0.05) as emulator:
        job = tmp_path / "job"
        job.mkdir()
        program = await run(emulator, "training_job.py", str(job))
        emulator.assert_nothing_rented()
    refusal, uploaded, *printed = program.output.splitlines()
    assert re.match(r"none of the 60 machines on offer will do: .*the lowest of these prices is", refusal)
    assert uploaded.startswith("1 files, ")
    assert printed == ["trained 3 epochs"] * 2


async def test_thirty_rentals_at_once_outlive_stock_outs(run: Run) -> None:
    with Emulator(seed=7, ssh=True, boot_seconds=0.05) as emulator:
        emulator.faults.add(Fault("stock-out", nth=3, times=10))
        program = await run(emulator, "thirty_at_once.py")
        assert program.output == "all done\n"
        assert emulator.faults.unmet == ()
        emulator.assert_nothing_rented()


async def test_notebook_shows_tables_and_output(run: Run) -> None:
    with Emulator(seed=7, ssh=True, boot_seconds=0.05) as emulator:
        program = await run(emulator, "notebook.py", runner="run_notebook.py")
        emulator.assert_nothing_rented()
    shown = dict(re.findall(r"^\[(\d)\] (.*?)(?=\n\[\d\] |\Z)", program.output, re.MULTILINE | re.DOTALL))
    assert "<th>node_name</th>" in shown["0"]
    assert re.fullmatch(r"<Rental rg-\S+ on node-\S+, container 1001: rented>", shown["1"].strip())
    assert "exit status 0" in shown["2"]
    assert "GPU 0: NVIDIA GeForce RTX 4090" in shown["2"]
    assert "careful" in shown["2"]
    assert shown["3"].strip() == "as a script prints it"
    assert re.match(r"\[Decimal\('\d", shown["4"])
    assert "<td>ready</td>" in shown["5"]
    assert "0 rows" in shown["6"]


async def test_web_application_starts_and_stops_containers(run: Run) -> None:
    with Emulator(seed=7, boot_seconds=0.2) as emulator:
        program = await run(emulator, "web_application.py")
        emulator.assert_nothing_rented()
    assert program.output == "['box-0', 'box-1', 'box-2', 'box-3', 'box-4'] 404\n"


def test_suite_of_ones_own_fails_where_a_container_is_forgotten(tmp_path: Path) -> None:
    counts, output = run_pytest(tmp_path, file="users/suite_of_my_code.py")
    assert counts == {"passed": 4, "error": 1}, output
    assert "forgotten" in output


async def test_thousands_are_watched_with_a_handful_of_requests(run: Run, full: bool) -> None:
    count = 2000 if full else 300
    with Emulator(seed=7, machines=count, boot_seconds=1.0) as emulator:
        program = await run(emulator, "watch_thousands.py", COUNT=str(count))
        assert program.output == f"{count} {count} {count}\n"
        emulator.assert_nothing_rented()
        calls = [request.call for request in emulator.requests]
    # Each deletion is proven by a request of its own; all waits and the watch before share their requests.
    before = calls[: calls.index("delete_container")]
    assert before.count("create_container") == count
    assert before.count("list_containers") + before.count("get_container") < count / 5


async def test_private_image_is_created_once_and_its_port_is_shown(run: Run) -> None:
    with Emulator(seed=7, ssh=True, boot_seconds=0.05, world=World(services="url")) as emulator:
        program = await run(emulator, "private_image.py")
        assert len(emulator.requests.of("create_image")) == 1
        emulator.assert_nothing_rented()
    service, done = program.output.splitlines()
    assert service.startswith("http")
    assert done == "done"


async def test_cron_reaps_what_has_expired(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state.sqlite3"
    with Emulator(seed=7, ssh=True, boot_seconds=0.05) as emulator:
        with RentGPU(emulator.token, base_url=emulator.url, state=state) as gpu:
            with gpu.rent(image="PyTorch 2.4") as rental:
                rental.detach()
        with closing(sqlite3.connect(state)) as connection:
            connection.execute("UPDATE rentals SET expires_at = intended_at")
            connection.commit()
        program = await run(emulator, "reap_from_cron.py")
        emulator.assert_nothing_rented()
        assert program.output == "deleted 1\n"
        again = await run(emulator, "reap_from_cron.py")
        assert again.output == "deleted 0\n"
