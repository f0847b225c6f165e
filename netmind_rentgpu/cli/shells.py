"""`ssh` and `run`: a command or a shell on a machine that is rented already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_result
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.remote import run_here
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.targets import find_target

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["use_machine"]


def use_machine(session: Session, wanted: str | None, *, has_terminal: bool, environment: dict[str, str]) -> int:
    """Run the command behind `--`, or open a shell, and return the exit code.

    Args:
        wanted: the machine; None for the only one.
        has_terminal: True to connect the command to this terminal.
        environment: variables of the command.

    Raises:
        CommandError: there is no terminal for a shell.
        RentGPUError: the machine was not found, or SSH failed.
    """
    line = session.command_line()
    if (has_terminal or line is None) and not session.has_terminal():
        raise CommandError(ExitCode.USAGE, "no terminal is here for a shell", "Give a command behind --.")
    if environment and (has_terminal or line is None):
        raise CommandError(ExitCode.USAGE, "--env goes with a command that has no terminal")

    async def use(gpu: AsyncRentGPU) -> int:
        target = await find_target(gpu, wanted)
        async with gpu.ssh(target.container_id) as shell:
            if line is not None and not has_terminal:
                result = await run_here(
                    shell, line, session.notes, environment=environment or None, timeout=session.options.seconds
                )
            else:
                with session.notes.raw():
                    result = await shell.interact(line)
        return code_of_result(result.exit_status, result.exit_signal)

    return session.run(use)
