"""JSON Schemas of results, derived from the types of the models and rows that are printed. Pure."""

from __future__ import annotations

import types
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints, is_typeddict

import attrs

from netmind_rentgpu.cli import rows
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.models import Auth, Container, Image, ImageType, Machine
from netmind_rentgpu.rentals.ledger.past_rentals import SpendingLine
from netmind_rentgpu.rentals.ledger.records import SHOWN_FIELDS, RentalRecord
from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget
from netmind_rentgpu.rentals.selection.offers import Offer
from netmind_rentgpu.results import JobStatus, OutputLine

__all__ = ["RESULTS", "schema_of_command"]

Schema: TypeAlias = dict[str, Any]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _Of:
    """A form that is made of several types."""

    def __init__(self, *kinds: Any) -> None:
        self.kinds: tuple[Any, ...] = kinds


class _Row(_Of):
    """An object with the fields of all types; of a field that two have, the last counts."""


class _List(_Of):
    """A list, each of whose items is of one of the types."""


class _OneOf(_Of):
    """A value of one of the types."""


_RENTAL: Final = _Row(RentalRecord, rows.RentalCost)
_JOB: Final = _Row(JobStatus, rows.JobPlace)
_ACCOUNT: Final = _Row(rows.AccountRow, rows.AccountCheck)

RESULTS: Final[Mapping[str, Any]] = {
    "rent": _OneOf(_List(_Row(Offer, rows.CostOfOffer)), _Row(RentalRecord, rows.RentalCost, rows.DetachedJob)),
    "offers": _List(Offer),
    "forward": _List(rows.ForwardedPort),
    "logs": _List(OutputLine),
    "jobs list": _List(_JOB),
    "jobs wait": _List(_JOB),
    "jobs stop": _List(_JOB),
    "jobs remove": _List(_JOB, rows.GoneJob),
    "rentals list": _List(_RENTAL),
    "rentals show": _RENTAL,
    "rentals extend": _RENTAL,
    "rentals release": _List(rows.ReleasedRental),
    "rentals reap": _List(rows.ReapedRental),
    "rentals spend": _List(SpendingLine),
    "rentals watch": _Row(RentalRecord, rows.RentalCost, rows.WatchedStage),
    "budgets list": _List(SharedBudget),
    "budgets set": SharedBudget,
    "budgets remove": _OneOf(SharedBudget, rows.GoneBudget),
    "login": _ACCOUNT,
    "logout": _OneOf(rows.AccountRow, rows.GoneAccount),
    "account list": _List(rows.AccountRow),
    "account use": rows.AccountRow,
    "account show": _ACCOUNT,
    "config list": _List(rows.Setting),
    "config get": rows.Setting,
    "machines list": _List(Machine),
    "auths list": _List(Auth),
    "auths show": Auth,
    "auths ensure": Auth,
    "auths create": Auth,
    "images list": _List(Image),
    "images show": Image,
    "images ensure": Image,
    "images create": Image,
    "containers list": _List(Container),
    "containers get": Container,
    "containers create": Container,
    "containers stop": _List(Container),
    "containers restart": _List(Container),
    "containers delete": _List(rows.DeletedContainer),
    "containers wait": _List(Container),
    "containers watch": _Row(rows.ContainerChange, Container),
    "containers ssh-config": _List(rows.SSHHost),
    "profile show": _List(rows.ProfileValue),
    "profile check": _List(rows.ProfileVerdict),
}
"""By command: the type of its result; of a `watch`, the type of each line."""

_PLAIN: Final[Mapping[Any, Schema]] = {
    type(None): {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Decimal: {"type": "number"},
    str: {"type": "string"},
    datetime: {"type": "string", "format": "date-time"},
    # In seconds.
    timedelta: {"type": "number"},
    Any: {},
}


def schema_of_command(name: str) -> Schema:
    """Return the schema of what a command prints with `-o json`.

    Raises:
        CommandError: there is no such command, or it prints no JSON.
    """
    if name not in RESULTS:
        near = [known for known in RESULTS if known.startswith(f"{name} ")] or list(RESULTS)
        raise CommandError(ExitCode.NOT_FOUND, f"no command {name!r} prints JSON", f"These do: {', '.join(near)}.")
    is_watch = name.endswith(" watch")
    title = f"{'a line of ' if is_watch else ''}rentgpu {name}{'' if is_watch else ' -o json'}"
    return {"$schema": _DIALECT, "title": title, **_schema(RESULTS[name])}


def _schema(kind: Any) -> Schema:
    if isinstance(kind, _List):
        return {"type": "array", "items": _any_of(kind.kinds)}
    if isinstance(kind, _OneOf):
        return _any_of(kind.kinds)
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if kind is ImageType:
        return _schema(get_type_hints(ImageType)["value"])
    is_object = isinstance(kind, _Row) or attrs.has(kind) or is_typeddict(kind)
    return _object(kind) if is_object else _schema_of_generic(get_origin(kind), get_args(kind))


def _schema_of_generic(origin: Any, inner: tuple[Any, ...]) -> Schema:
    if origin in (Union, types.UnionType):
        return _any_of(inner)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(inner[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    raise TypeError(f"no schema for a type of {origin!r}")


def _any_of(kinds: tuple[Any, ...]) -> Schema:
    schemas = [_schema(kind) for kind in kinds]
    if len(schemas) == 1:
        return schemas[0]
    if any(schema.keys() != {"type"} for schema in schemas):
        return {"anyOf": schemas}
    names: list[str] = []
    for schema in schemas:
        # An open enumeration has several types itself.
        names += [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return {"type": names}


def _object(kind: Any) -> Schema:
    properties = _fields(kind)
    return {
        "type": "object",
        "properties": {name: _schema(field) for name, field in properties.items()},
        # The models leave out an empty `extra`.
        "required": [name for name in properties if name != "extra"],
        "additionalProperties": False,
    }


def _fields(kind: Any) -> dict[str, Any]:
    """Return the types of the fields that a result has, by their names."""
    if isinstance(kind, _Row):
        return {name: field for part in kind.kinds for name, field in _fields(part).items()}
    hints = get_type_hints(kind)
    if kind is Offer:
        return {name: hints[name] for name in hints if name != "machine"} | _fields(Machine)
    if kind is RentalRecord:
        return {name: hints[name] if name in hints else _type_of_property(kind, name) for name in SHOWN_FIELDS}
    if attrs.has(kind):
        return {field.name: hints[field.name] for field in attrs.fields(kind)}
    return hints


def _type_of_property(kind: type[Any], name: str) -> Any:
    return get_type_hints(getattr(kind, name).fget)["return"]
