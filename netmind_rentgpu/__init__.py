"""Rent GPUs on NetMind from Python.

    from netmind_rentgpu import AsyncRentGPU

    async with AsyncRentGPU() as gpu:
        machines = await gpu.machines.list()

The names in `__all__` are public. Each is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.errors import (
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BudgetExceededError,
        ClientStateError,
        ConfigurationError,
        ConflictError,
        ContainerFailedError,
        ContainerGoneError,
        InsufficientBalanceError,
        InsufficientBudgetError,
        InvalidArgumentError,
        InvalidRequestError,
        JobExistsError,
        JobNotFoundError,
        MachineRefusal,
        NoMachineError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        ReleaseError,
        RentalEndedError,
        RentalExpiredError,
        RentalIdleError,
        RentalInUseError,
        RentalNotFoundError,
        RentGPUError,
        ServerError,
        SSHError,
        SSHTimeoutError,
        StateFileError,
        StateFolderError,
        TransportError,
        UnexpectedResponseError,
        WaitTimeoutError,
    )
    from netmind_rentgpu.literals import CurrencyName, GPUName, RegionCode
    from netmind_rentgpu.models import (
        Auth,
        Container,
        Image,
        ImageType,
        InvalidField,
        Machine,
        PaymentType,
        SSHEndpoint,
    )
    from netmind_rentgpu.profile import ServiceProfile
    from netmind_rentgpu.rentals.fleet import AsyncFleet
    from netmind_rentgpu.rentals.ledger.past_rentals import PastRental, SpendingLine, SpendingReport
    from netmind_rentgpu.rentals.ledger.records import EndCause, ReapReport, RentalRecord
    from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget
    from netmind_rentgpu.rentals.lifecycle.events import OnRentalEvent, RentalEvent
    from netmind_rentgpu.rentals.lifecycle.idleness import IdleWhen
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.rentals.selection.offers import Offer
    from netmind_rentgpu.results import (
        ActivityReading,
        CommandResult,
        JobState,
        JobStatus,
        OutputLine,
        TransferProgress,
    )
    from netmind_rentgpu.settings import DEFAULT, Retries, Timeouts
    from netmind_rentgpu.ssh.forwarded import AsyncForward
    from netmind_rentgpu.ssh.jobs import AsyncJob
    from netmind_rentgpu.ssh.shell import AsyncShell
    from netmind_rentgpu.ssh.streams import PipeSink, PipeSource
    from netmind_rentgpu.sync.client import RentGPU
    from netmind_rentgpu.sync.fleet import Fleet
    from netmind_rentgpu.sync.handles import Forward, Job, Rental, Shell
    from netmind_rentgpu.sync.wrappers import Pager
    from netmind_rentgpu.version import __version__
    from netmind_rentgpu.waiting.waits import WaitProgress
    from netmind_rentgpu.waiting.watching import Change
    from netmind_rentgpu.wire.paging import AsyncPager, Page

__all__ = [
    "DEFAULT",
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "ActivityReading",
    "AsyncFleet",
    "AsyncForward",
    "AsyncJob",
    "AsyncPager",
    "AsyncRentGPU",
    "AsyncRental",
    "AsyncShell",
    "Auth",
    "AuthenticationError",
    "BudgetExceededError",
    "Change",
    "ClientStateError",
    "CommandResult",
    "ConfigurationError",
    "ConflictError",
    "Container",
    "ContainerFailedError",
    "ContainerGoneError",
    "CurrencyName",
    "EndCause",
    "Fleet",
    "Forward",
    "GPUName",
    "IdleWhen",
    "Image",
    "ImageType",
    "InsufficientBalanceError",
    "InsufficientBudgetError",
    "InvalidArgumentError",
    "InvalidField",
    "InvalidRequestError",
    "Job",
    "JobExistsError",
    "JobNotFoundError",
    "JobState",
    "JobStatus",
    "Machine",
    "MachineRefusal",
    "NoMachineError",
    "NotFoundError",
    "Offer",
    "OnRentalEvent",
    "OutputLine",
    "Page",
    "Pager",
    "PastRental",
    "PaymentType",
    "PermissionDeniedError",
    "PipeSink",
    "PipeSource",
    "RateLimitError",
    "ReapReport",
    "RegionCode",
    "ReleaseError",
    "RentGPU",
    "RentGPUError",
    "Rental",
    "RentalEndedError",
    "RentalEvent",
    "RentalExpiredError",
    "RentalIdleError",
    "RentalInUseError",
    "RentalNotFoundError",
    "RentalRecord",
    "Retries",
    "SSHEndpoint",
    "SSHError",
    "SSHTimeoutError",
    "ServerError",
    "ServiceProfile",
    "SharedBudget",
    "Shell",
    "SpendingLine",
    "SpendingReport",
    "StateFileError",
    "StateFolderError",
    "Timeouts",
    "TransferProgress",
    "TransportError",
    "UnexpectedResponseError",
    "WaitProgress",
    "WaitTimeoutError",
    "__version__",
]

_MODULES = {
    "sync.wrappers": ("Pager",),
    "client": ("AsyncRentGPU",),
    "literals": ("CurrencyName", "GPUName", "RegionCode"),
    "models": ("Auth", "Container", "Image", "ImageType", "InvalidField", "Machine", "PaymentType", "SSHEndpoint"),
    "profile": ("ServiceProfile",),
    "rentals.selection.offers": ("Offer",),
    "rentals.ledger.shared_budgets": ("SharedBudget",),
    "rentals.lifecycle.events": ("OnRentalEvent", "RentalEvent"),
    "rentals.lifecycle.idleness": ("IdleWhen",),
    "rentals.ledger.past_rentals": ("PastRental", "SpendingLine", "SpendingReport"),
    "rentals.ledger.records": ("EndCause", "ReapReport", "RentalRecord"),
    "rentals.fleet": ("AsyncFleet",),
    "rentals.rental": ("AsyncRental",),
    "settings": ("DEFAULT", "Retries", "Timeouts"),
    "results": ("ActivityReading", "CommandResult", "JobState", "JobStatus", "OutputLine", "TransferProgress"),
    "ssh.forwarded": ("AsyncForward",),
    "ssh.jobs": ("AsyncJob",),
    "ssh.shell": ("AsyncShell",),
    "ssh.streams": ("PipeSink", "PipeSource"),
    "sync.client": ("RentGPU",),
    "sync.fleet": ("Fleet",),
    "sync.handles": ("Forward", "Job", "Rental", "Shell"),
    "version": ("__version__",),
    "waiting.waits": ("WaitProgress",),
    "waiting.watching": ("Change",),
    "wire.paging": ("AsyncPager", "Page"),
}
# All public names that are not here are in `errors`.
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
