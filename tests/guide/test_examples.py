"""The README and the guide show only what works: their examples run as a reader runs them, and print what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_examples import languages_of, run_page
from sybil.example import SybilFailure

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "netmind_rentgpu" / "guide"
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", *sorted(GUIDE.rglob("*.md")))
    if set(languages_of(page.read_text(encoding="utf-8"))) & {"python", "console", "crontab"}
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_examples_of_page_print_what_it_shows(page: str, tmp_path: Path) -> None:
    assert run_page(PAGES[page], tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "the output was:\n1"),
        ("```python\nprint(1)\n```\n", "the output of a program is not shown:\n1"),
        ("```python\nprint(1)\n```\n```python\nprint(1)\n```\n", "the output of a program is not shown:\n1"),
        ("```python\nraise SystemExit(3)\n```\n", "exit status 3"),
        ("```python\nimport sys\nprint(1, file=sys.stderr)\n```\n", "exit status 0\n1"),
        ("```text\nx\n```\n", "no program stands before"),
        ("```toml\na = 1\n```\n", "does not name the file"),
        ("```python\n# mine.py\n```\n```console\n$ python other.py\n```\n", "no later example uses mine.py"),
        ("```console\n$ echo 1\n2\n$ true\n```\n", "the output was:\n1"),
        ("```console\n$ false\n$ no-such-command\n```\n", "no-such-command"),
        ("```console\n$ printf 'a\\tb\\n'\na b\n```\n", "the output was:\na  b"),
        ("```crontab\n0 * * * * exit 4\n```\n", "exit status 4"),
        ("```python\nprint('abc')\n```\n```text\na...d\n```\n", "a...d"),
    ],
)
def test_example_that_does_not_work_is_found(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises((SybilFailure, AssertionError)) as caught:
        run_page(tmp_path / "page.md", tmp_path)
    assert problem in str(caught.value)


def test_examples_share_files_variables_and_a_server(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "```python\n# mine.py\nimport os\nprint(os.environ['MINE'])\n```\n"
        "```console\n$ export MINE=7\n$ python mine.py\n7\n$ echo a \\\n> b; cat mine.py\na b\n# mine.py\n...\n```\n"
        "```toml\n# faults.toml\n```\n"
        "```console\n$ python -m netmind_rentgpu.emulator --faults faults.toml\nexport NETMIND_BASE_URL=...\n"
        "export NETMIND_API_KEY=...\n```\n"
        "```python\nfrom netmind_rentgpu import RentGPU\nwith RentGPU() as gpu:\n    print(len(gpu.machines.list()) > 9)\n"
        "```\n\n```text\nTrue\n```\n"
        "```crontab\n5 * * * * python -c 'import netmind_rentgpu'\n```\n"
    )
    assert run_page(tmp_path / "page.md", tmp_path) == 7


def test_session_serves_the_emulator_of_the_command_line_and_shows_a_table_as_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "```console\n$ rentgpu emulator --ssh --seed 7\nexport NETMIND_BASE_URL=...\nexport NETMIND_API_KEY=...\n```\n"
        "```console\n$ printf 'NAME\\tSTATE\\t\\tSPENT\\none\\t\\t\\t1\\n'\nNAME  STATE    SPENT\none                1\n"
        "$ rentgpu offers --gpu 4090 -o csv | wc -l\n2\n```\n"
    )
    assert run_page(tmp_path / "page.md", tmp_path) == 2
