"""The exit codes of the command line, and the code of each error. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from netmind_rentgpu import errors

__all__ = ["EXPLANATIONS", "ExitCode", "code_of_error", "code_of_result", "code_of_signal"]


class ExitCode(IntEnum):
    """The exit codes of our own; all others are those of a remote command."""

    DONE = 0
    NO = 1
    USAGE = 2
    NOT_FOUND = 66
    UNREACHABLE = 69
    BUG = 70
    LOST = 74
    TRY_LATER = 75
    UNCLEAR = 76
    TOKEN = 77
    CONFIGURATION = 78
    BALANCE = 79
    TIME_UP = 124
    STILL_RENTED = 125
    HANGUP = 129
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
    TERMINATED = 143


EXPLANATIONS: Final[Mapping[ExitCode, str]] = {
    ExitCode.DONE: "Done. For a remote command: it exited with 0, and a machine that was rented for it is given back.",
    ExitCode.NO: "The answer is no, or not all was done.",
    ExitCode.USAGE: "The command line cannot be used as it was typed, or needs `--yes`.",
    ExitCode.NOT_FOUND: "There is no such rental, container, job, password, image or file.",
    ExitCode.UNREACHABLE: "The service could not be reached or failed, and certainly did nothing.",
    ExitCode.BUG: "A bug of this program.",
    ExitCode.LOST: "The state file, SSH or an output failed, or the connection or the machine was lost.",
    ExitCode.TRY_LATER: "No machine is available, or the service has refused too many requests: try later.",
    ExitCode.UNCLEAR: "The answer was lost: the service may have done it.",
    ExitCode.TOKEN: "The service does not accept the token, or not for this.",
    ExitCode.CONFIGURATION: "A setting is missing or cannot be used.",
    ExitCode.BALANCE: "The balance or a shared budget is too low.",
    ExitCode.TIME_UP: "A timeout, the ttl or the budget was up.",
    ExitCode.STILL_RENTED: "Something may still be rented and cost money. This code comes before all others.",
    ExitCode.HANGUP: "SIGHUP has ended this program.",
    ExitCode.INTERRUPTED: "SIGINT (Ctrl-C) has ended this program.",
    ExitCode.OUTPUT_CLOSED: "The reader of the output, such as `head`, has closed it.",
    ExitCode.TERMINATED: "SIGTERM has ended this program.",
}

# The most derived classes first; an error has the code of the first class that it is of.
_CODES: Final[tuple[tuple[type[BaseException], ExitCode], ...]] = (
    (errors.ReleaseError, ExitCode.STILL_RENTED),
    (errors.StateFileError, ExitCode.LOST),
    (errors.ConfigurationError, ExitCode.CONFIGURATION),
    (errors.InvalidArgumentError, ExitCode.USAGE),
    (errors.AuthenticationError, ExitCode.TOKEN),
    (errors.PermissionDeniedError, ExitCode.TOKEN),
    (errors.InsufficientBalanceError, ExitCode.BALANCE),
    (errors.InsufficientBudgetError, ExitCode.BALANCE),
    (errors.NotFoundError, ExitCode.NOT_FOUND),
    (errors.RentalNotFoundError, ExitCode.NOT_FOUND),
    (errors.JobNotFoundError, ExitCode.NOT_FOUND),
    (errors.ContainerGoneError, ExitCode.NOT_FOUND),
    (errors.RateLimitError, ExitCode.TRY_LATER),
    (errors.NoMachineError, ExitCode.TRY_LATER),
    (errors.ServerError, ExitCode.UNCLEAR),
    (errors.UnexpectedResponseError, ExitCode.UNCLEAR),
    (errors.APIStatusError, ExitCode.NO),
    (errors.ContainerFailedError, ExitCode.NO),
    (errors.RentalInUseError, ExitCode.NO),
    (errors.JobExistsError, ExitCode.NO),
    (errors.WaitTimeoutError, ExitCode.TIME_UP),
    (errors.SSHTimeoutError, ExitCode.TIME_UP),
    (errors.RentalExpiredError, ExitCode.TIME_UP),
    (errors.RentalIdleError, ExitCode.TIME_UP),
    (errors.BudgetExceededError, ExitCode.TIME_UP),
    (errors.RentalEndedError, ExitCode.LOST),
    (errors.SSHError, ExitCode.LOST),
    (errors.ClientStateError, ExitCode.BUG),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
)
# A call that changes nothing has done nothing, however unclear its answer is.
_OF_READING: Final[Mapping[ExitCode, ExitCode]] = {ExitCode.UNCLEAR: ExitCode.UNREACHABLE}
# The signals that may end a remote command, as shells count them; the numbers are those of Linux.
_SIGNALS: Final[Mapping[str, int]] = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "TRAP": 5,
    "ABRT": 6,
    "BUS": 7,
    "FPE": 8,
    "KILL": 9,
    "USR1": 10,
    "SEGV": 11,
    "USR2": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "STKFLT": 16,
    "CHLD": 17,
    "CONT": 18,
    "STOP": 19,
    "TSTP": 20,
    "TTIN": 21,
    "TTOU": 22,
    "URG": 23,
    "XCPU": 24,
    "XFSZ": 25,
    "VTALRM": 26,
    "PROF": 27,
    "WINCH": 28,
    "IO": 29,
    "PWR": 30,
    "SYS": 31,
}
_UNKNOWN_SIGNAL: Final = 127


def code_of_error(error: BaseException, *, reads_only: bool = False) -> ExitCode:
    """Return the exit code of an error.

    Args:
        reads_only: True if the command changes nothing at the service.
    """
    code = _code_of(error)
    return _OF_READING.get(code, code) if reads_only else code


def _code_of(error: BaseException) -> ExitCode:
    if isinstance(error, errors.TransportError):
        return ExitCode.UNCLEAR if error.maybe_processed else ExitCode.UNREACHABLE
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.BUG


def code_of_result(exit_status: int | None, exit_signal: str | None) -> int:
    """Return the exit code for the end of a remote command: its status, or 128 and the number of the signal."""
    if exit_signal is not None:
        return 128 + _SIGNALS.get(exit_signal, _UNKNOWN_SIGNAL)
    return ExitCode.LOST if exit_status is None else exit_status


def code_of_signal(number: int) -> int:
    """Return the exit code of this program after a signal to it."""
    return 128 + number
