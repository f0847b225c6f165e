"""`rentgpu completion`, in the shells that are here."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from command_line import Here, Site


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_for_both_names(here: Here, shell: str) -> None:
    done = here.run("completion", shell)
    assert (done.code, done.errors) == (0, "")
    for name in ("rentgpu", "netmind-rentgpu"):
        assert f"_{name.replace('-', '_').upper()}_COMPLETE={shell}_complete" in done.text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_reads_its_completion_without_a_complaint(here: Here, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = here.run("completion", shell).text
    first = "autoload -Uz compinit; compinit -u\n" if shell == "zsh" else ""
    done = subprocess.run([shell], input=first + script, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shell_completes_commands_and_options(site: Site) -> None:
    script = """
        eval "$(rentgpu completion bash)"
        COMPREPLY=(); COMP_WORDS=(rentgpu re); COMP_CWORD=1
        _rentgpu_completion rentgpu; echo "${COMPREPLY[@]}"
        COMPREPLY=(); COMP_WORDS=(rentgpu rentals ex); COMP_CWORD=2
        _rentgpu_completion rentgpu; echo "${COMPREPLY[@]}"
        COMPREPLY=(); COMP_WORDS=(rentgpu rent --sha); COMP_CWORD=2
        _rentgpu_completion rentgpu; echo "${COMPREPLY[@]}"
    """
    done = site.shell(script)
    assert done.text.splitlines() == ["rent rentals", "extend", "--shared-budget"]
