"""The fields of results that are no models: `rentgpu schema` derives from them what `-o json` prints."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias, TypedDict

from netmind_rentgpu.rentals.ledger.records import Stage

__all__ = [
    "AccountCheck",
    "AccountRow",
    "ContainerChange",
    "CostOfOffer",
    "DeletedContainer",
    "DetachedJob",
    "ForwardedPort",
    "GoneAccount",
    "GoneBudget",
    "GoneJob",
    "JobPlace",
    "ProfileValue",
    "ProfileVerdict",
    "ReapedRental",
    "ReleasedRental",
    "RentalCost",
    "SSHHost",
    "Setting",
    "Verdict",
    "WatchedStage",
]

Verdict: TypeAlias = Literal["confirmed", "contradicted", "open"]


class AccountRow(TypedDict):
    """An account of the configuration file."""

    name: str
    is_used: bool
    base_url: str
    profile: str | None
    token_from: str


class AccountCheck(TypedDict):
    """The state of an account's token."""

    check: str


class GoneAccount(TypedDict):
    """An account that was gone already."""

    name: str


class Setting(TypedDict):
    """A setting of the command line, and where its value comes from."""

    name: str
    value: str | None
    source: str | None


class CostOfOffer(TypedDict):
    """The highest cost of an offer, and the end of its rental."""

    max_cost: Decimal | None
    expires_at: datetime


class RentalCost(TypedDict):
    """The cost of a rental so far."""

    spent: Decimal | None


class DetachedJob(TypedDict):
    """The job that `rent -d` leaves running."""

    job: str | None


class WatchedStage(TypedDict):
    """The stage of a watched rental."""

    stage: Stage | Literal["over"]


class ReleasedRental(TypedDict):
    """A rental that `rentals release` was asked for."""

    name: str
    label: str | None
    container_id: int | None
    state: Literal["released", "gone"]
    spent: Decimal | None
    currency: str | None


class ReapedRental(TypedDict):
    """A rental that `rentals reap` has dealt with."""

    name: str
    state: Literal["deleted", "gone", "doubtful", "failed", "elsewhere"]
    error: str | None


class JobPlace(TypedDict):
    """The machine of a job."""

    machine: str


class GoneJob(TypedDict):
    """A job that was gone already."""

    name: str
    machine: str


class GoneBudget(TypedDict):
    """A budget that was gone already."""

    name: str


class ForwardedPort(TypedDict):
    """A forwarded port."""

    url: str
    local_port: int
    remote_port: int
    name: str


class DeletedContainer(TypedDict):
    """A container that `containers delete` was asked for."""

    id: int
    name: str | None
    node_name: str | None
    state: Literal["deleted", "gone"]


class ContainerChange(TypedDict):
    """The kind of a change that `containers watch` has seen."""

    change: Literal["new", "changed", "gone"]


class SSHHost(TypedDict):
    """A container as OpenSSH finds it."""

    id: int
    hosts: list[str]
    host_name: str
    port: int
    user: str
    host_key: str
    host_key_alias: str
    known_hosts_file: str


class ProfileValue(TypedDict):
    """A field of the profile in use."""

    name: str
    value: str | int | float | bool | dict[str, int]
    source: Literal["default", "file"]
    file: str | None


class ProfileVerdict(TypedDict):
    """A field of the profile in use, and what the service's answers say of it."""

    name: str
    value: str | int | float | bool | dict[str, int]
    verdict: Verdict
    seen: str
