"""`netmind-rentgpu help`: the guide and the docstrings in a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from short_forms import thinned

import netmind_rentgpu
from netmind_rentgpu.cli.guide import NoSuchTopicError, help_text

GUIDE = Path(netmind_rentgpu.__file__).parent / "guide"
PAGES = sorted(GUIDE.rglob("*.md"))
COMMAND = [sys.executable, "-m", "netmind_rentgpu", "help"]
WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from netmind_rentgpu.cli import main
main()
"""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_no_topic_prints_the_index_without_what_only_a_site_shows() -> None:
    text = help_text([])
    assert text.startswith("# netmind_rentgpu\n")
    assert "(how-to/budgets.md)" in text
    assert "toctree" not in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_can_be_printed_by_its_name(page: Path) -> None:
    text = help_text([page.stem])
    assert text.startswith(page.read_text(encoding="utf-8").partition("\n")[0])
    assert "{eval-rst}" not in text


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (["first"], "# Your first rental"),
        (["many", "at", "once"], "# Many machines at once"),
        (["BUDGETS"], "# Budgets"),
        (["how-to/reap.md"], "# Reap"),
        (["reference"], "# Reference"),
        (["wire"], "# The wire contract"),
    ],
)
def test_page_is_found_by_a_part_of_its_name(words: list[str], title: str) -> None:
    assert help_text(words).startswith(title)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["xyzzy"], "no page is called 'xyzzy' or mentions it; the pages are\n    explanation/"),
        (["ttl"], "no page is called 'ttl'; it is mentioned in\n    how-to/"),
        (["exposed", "port"], "no page is called 'exposed-port'; it is mentioned in\n    "),
        (["how-to"], "'how-to' may mean any of\n    how-to/accounts\n    how-to/"),
        (["reference", "spent"], "no public name is 'spent'; did you mean .*Rental.spent"),
        (
            ["reference", "exposed_service"],
            "no public name is 'exposed_service'; did you mean Container.exposed_service",
        ),
        (["reference", "has_shs"], "no public name is 'has_shs'; did you mean has_ssh"),
        (["reference", "RentGPU.nope"], "no public name is 'RentGPU.nope'"),
        (["reference", "zzzzzzz"], "no public name is 'zzzzzzz'"),
        (["reference", "os.system"], "no public name is 'os.system'"),
    ],
)
def test_unknown_topic_is_refused_with_those_that_are_near(words: list[str], problem: str) -> None:
    with pytest.raises(NoSuchTopicError, match=f"^{problem}"):
        help_text(words)


@pytest.mark.parametrize(
    ("name", "heading", "part"),
    [
        (
            "RentGPU.rent",
            "RentGPU.rent(\n    *,\n    image: int | str | Image | None = None,\n",
            "`with gpu.rent(...) as rental: ...`",
        ),
        ("Container.exposed_service", "Container.exposed_service\n", "the address of the image's `public_port`"),
        ("ServiceProfile.list_lag", "ServiceProfile.list_lag\n", "the longest time for which a new container"),
        ("Fault", "Fault(\n    what: What,\n", "    method: Literal['GET', 'POST', 'DELETE'] | None = None,\n"),
        ("GPUName", "GPUName\n", "    NVIDIA_GeForce_RTX_4090\n"),
        ("AsyncRental.detach", "async AsyncRental.detach(", "Leave the rental running"),
        ("AsyncShell", "AsyncShell", "\nasync stream("),
        ("JobState", "JobState\n", "    signaled\n"),
        ("AsyncRental", "AsyncRental(", "\nasync start(\n"),
        ("AsyncRental.forward", "async AsyncRental.forward(", "The port stays open while the connection is lost"),
        ("job.logs", "async AsyncJob.logs(\n", "Yield the lines that the job has written."),
        ("Fault", "Fault(", "\nfrom netmind_rentgpu.emulator import Fault\n"),
        ("rent", "AsyncRentGPU.rent(\n", "`async with gpu.rent(...) as rental: ...`"),
        ("gpu.rent", "AsyncRentGPU.rent(\n", "Raises:"),
        ("machines.list", "async AsyncMachines.list(\n", "(`GET /v1/rentgpu/machines`; not paged)"),
        ("gpu.rentals.reap", "async AsyncRentals.reap(", "Delete each rental"),
        ("conditions.has_ssh", "has_ssh(container: Container) -> bool\n", "names an endpoint"),
        ("emulator.Emulator.url", "Emulator.url\n", "The base URL"),
        ("has_ssh", "has_ssh(container: Container) -> bool\n", "names an endpoint"),
        ("Rental", "Rental", "run(\n    command: str,\n"),
        ("NoMachineError", "NoMachineError", "refusals"),
        ("World", "World(", "second_delete"),
        ("netmind_rentgpu.Machine", "Machine(", "gpu_memory: the memory of one GPU"),
        ("AsyncRental.spent", "AsyncRental.spent\n", "estimated cost"),
    ],
)
def test_documentation_of_a_name_has_its_signature_and_docstring(name: str, heading: str, part: str) -> None:
    text = help_text(["reference", name])
    assert text.startswith(heading)
    assert part in text


def test_piped_page_is_raw_and_a_terminal_gets_it_rendered() -> None:
    raw = run([*COMMAND, "budgets"])
    assert (raw.returncode, raw.stderr) == (0, "")
    assert raw.stdout == (GUIDE / "how-to" / "budgets.md").read_text(encoding="utf-8")
    leader, follower = pty.openpty()
    with subprocess.Popen([*COMMAND, "budgets"], stdout=follower, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(follower)
        seen = b""
        try:
            while chunk := os.read(leader, 65536):
                seen += chunk
        except OSError:  # the terminal's end on Linux
            pass
        assert process.wait(60) == 0
    os.close(leader)
    assert b"\x1b[" in seen
    assert b"```" not in seen
    assert b"BudgetExceededError" in seen
    assert b".md" not in seen
    assert b"help" in seen


def test_no_two_pages_share_a_name() -> None:
    # So that a link can be shown as the name alone.
    assert len({page.stem for page in PAGES}) == len(PAGES)


def test_unknown_topic_ends_with_status_66_and_says_so() -> None:
    done = run([*COMMAND, "xyzzy"])
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr.startswith("rentgpu: no page is called 'xyzzy'")


@pytest.mark.parametrize(
    "missing",
    thinned([["click", "rich", "asyncssh", "pytest"], ["click"], ["rich"], ["click", "rich"]], every=3),
)
def test_help_needs_no_extra(missing: list[str]) -> None:
    program = [sys.executable, "-W", "error", "-c", WITHOUT.format(missing=missing), "help"]
    done = run([*program, "reap"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (GUIDE / "how-to" / "reap.md").read_text(encoding="utf-8")
    assert run([*program, "reference", "AsyncShell.run"]).stdout.startswith("async AsyncShell.run(")
    done = run([*program, "xyzzy"])
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr.startswith("rentgpu: no page is called 'xyzzy'")
    done = run([*program, "reference", "attach"])
    assert done.stderr.startswith("rentgpu: no public name is 'attach'; did you mean AsyncRentals.attach")
    done = run([*program, "pytest-plugin"])
    assert done.returncode == 0
    assert ("not available, because pytest is not installed" in done.stdout) == ("pytest" in missing)
