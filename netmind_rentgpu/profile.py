"""What the service's documentation leaves open, as one value with a field for each guess.

The defaults are inferred, not known; `netmind_rentgpu/guide/wire-contract.md`, "Inferred", says from what. None of them is
written anywhere else in the package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import ConfigurationError

__all__ = ["ServiceProfile"]

PROFILE_VARIABLE = "NETMIND_RENTGPU_PROFILE"


def _one_of(*choices: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_: Any, field: attrs.Attribute[Any], value: object) -> None:
        if value not in choices:
            raise ConfigurationError(
                f"profile: {field.name} must be one of {', '.join(choices)}, not {arguments.shown_value(value)}"
            )

    return check


def _text(_: Any, field: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"profile: {field.name} must be a text")


def _positive(_: Any, field: attrs.Attribute[int], value: int) -> None:
    if type(value) is not int or value < 1:
        raise ConfigurationError(
            f"profile: {field.name} must be a whole number above 0, not {arguments.shown_value(value)}"
        )


def _true_or_false(_: Any, field: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"profile: {field.name} must be true or false, not {arguments.shown_value(value)}")


def _duration(value: timedelta | float) -> timedelta:
    """Let a number of seconds stand for a duration, as it has to in a TOML file."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return timedelta(seconds=value)
        except (ValueError, OverflowError):
            pass
    return value  # type: ignore[return-value]  # what is no duration is refused by the field's check


def _not_negative(_: Any, field: attrs.Attribute[timedelta], value: timedelta) -> None:
    if not isinstance(value, timedelta) or value < timedelta(0):
        raise ConfigurationError(
            f"profile: {field.name} must be a duration (in a file: seconds), not {arguments.shown_value(value)}"
        )


def _above_zero(_: Any, field: attrs.Attribute[timedelta], value: timedelta) -> None:
    _not_negative(_, field, value)
    if not value:
        raise ConfigurationError(f"profile: {field.name} must be above 0")


def _frozen_numbers(value: Mapping[str, int]) -> Mapping[str, int]:
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


def _numbers(_: Any, field: attrs.Attribute[Mapping[str, int]], value: Mapping[str, int]) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and type(number) is int for name, number in value.items()
    ):
        raise ConfigurationError(f"profile: {field.name} must give each name a whole number")
    if len(set(value.values())) != len(value):
        raise ConfigurationError(f"profile: {field.name} gives one number to two names")


def _comparable(value: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(value.items()))


def _numbers_field(**numbers: int) -> Any:
    return attrs.field(
        factory=lambda: dict(numbers), converter=_frozen_numbers, validator=_numbers, eq=_comparable, order=False
    )


@attrs.frozen(kw_only=True)
class ServiceProfile:
    """What is assumed of the service where its documentation is silent.

    Attributes:
        authorization: how the token stands in the `Authorization` header: after the word Bearer, or bare.
        gpu_names_parameter: which query variable of the machine list takes the comma-separated GPU names. Where it is
            `gpu`, no count is sent.
        image_types, payment_types: the numbers of the enumerations. A wrong payment type charges the wrong balance.
        container_statuses: names for the numbers in a container's `status`; none is known.
        currency: the currency that prices are asked in where a call names none.
        validation_errors_key: the key of a 422 body under which the rejected fields are listed.
        price_period, price_basis: what a machine's `price` buys: one GPU, or the whole machine, for how long.
        memory_field, disk_field: the machine's field that `min_memory` and the like, `min_disk` and the like, are about.
        page_size: how many items to ask for at a time; fewer are asked for once the service refuses that many.
        list_lag: how long a new container may be missing from the list.
        create_lag: how long after a create got no clear answer the service may still act on it.
        delete_lag: how long after an acknowledged deletion the container may still be shown. After that it is deleted once
            more, and then counts as not deleted.
        deleted_stay_listed: True if the service still shows containers that were deleted. The answer to a deletion is then
            the only proof of it.
        ssh_username: who logs in where a container's `ssh` names nobody.
    """

    authorization: Literal["bearer", "bare"] = attrs.field(default="bearer", validator=_one_of("bearer", "bare"))
    gpu_names_parameter: Literal["gpu_names", "gpu"] = attrs.field(
        default="gpu_names", validator=_one_of("gpu_names", "gpu")
    )
    image_types: Mapping[str, int] = _numbers_field(OFFICIAL=0, PUBLIC=1, CUSTOM=2)
    payment_types: Mapping[str, int] = _numbers_field(USD=0, NMT=1, CNY=2)
    container_statuses: Mapping[str, int] = _numbers_field()
    currency: str = attrs.field(default="USD", validator=_text)
    validation_errors_key: str = attrs.field(default="detail", validator=_text)
    price_period: timedelta = attrs.field(default=timedelta(hours=1), converter=_duration, validator=_above_zero)
    price_basis: Literal["gpu", "machine"] = attrs.field(default="gpu", validator=_one_of("gpu", "machine"))
    memory_field: Literal["memory_total", "memory_per_gpu", "gpu_memory"] = attrs.field(
        default="memory_total", validator=_one_of("memory_total", "memory_per_gpu", "gpu_memory")
    )
    disk_field: Literal["disk_total", "disk_per_gpu"] = attrs.field(
        default="disk_total", validator=_one_of("disk_total", "disk_per_gpu")
    )
    page_size: int = attrs.field(default=100, validator=_positive)
    list_lag: timedelta = attrs.field(default=timedelta(seconds=30), converter=_duration, validator=_not_negative)
    create_lag: timedelta = attrs.field(default=timedelta(seconds=60), converter=_duration, validator=_not_negative)
    delete_lag: timedelta = attrs.field(default=timedelta(seconds=30), converter=_duration, validator=_not_negative)
    deleted_stay_listed: bool = attrs.field(default=False, validator=_true_or_false)
    ssh_username: str = attrs.field(default="root", validator=_text)

    def __reduce__(self) -> tuple[Any, ...]:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in attrs.fields(ServiceProfile)}
        for name in ("image_types", "payment_types", "container_statuses"):
            values[name] = dict(values[name])
        return _from_values, (values,)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> ServiceProfile:
        """Read a profile from a TOML file whose keys are this class's fields; durations are numbers of seconds.

        Raises:
            ConfigurationError: the file cannot be read, is not TOML, or holds a key or value that is not known.
        """
        import tomllib

        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"profile {os.fspath(path)}: {error}") from error
        unknown = values.keys() - {field.name for field in attrs.fields(cls)}
        if unknown:
            raise ConfigurationError(f"profile {os.fspath(path)}: unknown key {', '.join(sorted(unknown))}")
        try:
            return cls(**values)
        except ConfigurationError as error:
            raise ConfigurationError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def resolve(
        cls, profile: ServiceProfile | str | os.PathLike[str] | None, environment: Mapping[str, str]
    ) -> ServiceProfile:
        """Return the profile an argument means: itself, a TOML file's, or what `NETMIND_RENTGPU_PROFILE` names."""
        if isinstance(profile, ServiceProfile):
            return profile
        if profile is not None and not isinstance(profile, (str, os.PathLike)):
            raise ConfigurationError(f"profile must be a ServiceProfile or a path, not {type(profile).__name__}")
        path = profile or environment.get(PROFILE_VARIABLE)
        return cls.from_toml(path) if path else cls()


def _from_values(values: dict[str, Any]) -> ServiceProfile:
    return ServiceProfile(**values)
