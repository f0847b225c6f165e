"""The client's assumptions where the service's documentation is silent: one value with a field for each guess.

The defaults are inferred, not known; `netmind_rentgpu/guide/explanation/wire-contract.md`, "Inferred", names the evidence
for each. No other file of the package repeats them.
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
from netmind_rentgpu.accounts import AccountChoice
from netmind_rentgpu.errors import ConfigurationError

__all__ = ["ServiceProfile", "profile_path"]

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
    """Convert a number of seconds to a duration, because a TOML file can hold only the number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return timedelta(seconds=value)
        except (ValueError, OverflowError):
            pass
    return value  # type: ignore[return-value]  # the field's check refuses a value that is no duration


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
        raise ConfigurationError(f"profile: {field.name} must map each name to a whole number")
    if len(set(value.values())) != len(value):
        raise ConfigurationError(f"profile: {field.name} maps two names to one number")


def _comparable(value: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(value.items()))


def _numbers_field(**numbers: int) -> Any:
    return attrs.field(
        factory=lambda: dict(numbers), converter=_frozen_numbers, validator=_numbers, eq=_comparable, order=False
    )


@attrs.frozen(kw_only=True)
class ServiceProfile:
    """The client's assumptions about the service where its documentation is silent.

    Attributes:
        authorization: the form of the token in the `Authorization` header: "bearer" puts the word Bearer before the token,
            "bare" does not.
        gpu_names_parameter: the query variable of the machine list that takes the comma-separated GPU names. With "gpu",
            a query that names GPUs sends no count of GPUs.
        image_types, payment_types: the numbers of the enumerations. A wrong payment type charges the wrong balance.
        container_statuses: the names of the numbers in a container's `status`; by default none, because none is documented.
        currency: the currency to ask prices in, if a call names none.
        validation_errors_key: the key of a 422 body that holds the list of rejected fields.
        price_period: the time that a machine's `price` pays for.
        price_basis: "gpu" if a machine's `price` is for one GPU, "machine" if it is for the whole machine.
        memory_field, disk_field: the machine's fields to which bounds on memory and on disk apply, such as `min_memory` and
            `min_disk`.
        page_size: the number of items to ask for at a time. The client asks for fewer once the service refuses that many.
        list_lag: the longest time for which a new container may be missing from the list.
        create_lag: the longest time for which the service may still act on a create after the client got no clear answer.
        delete_lag: the longest time for which the service may still show a container after it has acknowledged the deletion.
            If the container is shown for longer, the client deletes it once more; if that does not help, it counts as not
            deleted.
        deleted_stay_listed: True if the service still shows deleted containers. The answer to a deletion is then its only
            proof.
        ssh_username: the user to log in as, if a container's `ssh` names none.
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
            ConfigurationError: the file cannot be read, is not TOML, or holds an unknown key or a value that cannot be used.
        """
        import tomllib

        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
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
        cls,
        profile: ServiceProfile | str | os.PathLike[str] | None,
        environment: Mapping[str, str],
        choice: AccountChoice | None = None,
    ) -> ServiceProfile:
        """Return the profile that an argument is or names, else that of `NETMIND_RENTGPU_PROFILE`, else the default.

        Args:
            choice: the account, whose profile goes before or behind the variable.

        Raises:
            ConfigurationError: the argument is no profile and no path, or the file cannot be used.
        """
        if isinstance(profile, ServiceProfile):
            return profile
        if profile is not None and not isinstance(profile, (str, os.PathLike)):
            raise ConfigurationError(f"profile must be a ServiceProfile or a path, not {type(profile).__name__}")
        path = profile_path(profile, environment, choice or AccountChoice())
        return cls.from_toml(path) if path else cls()


def profile_path(
    argument: str | os.PathLike[str] | None, environment: Mapping[str, str], choice: AccountChoice
) -> str | None:
    """Return the path of the profile's file, by the argument, the environment and the account; None for the default."""
    account = choice.account
    of_account = None if account is None or account.profile is None else str(account.profile)
    given = None if argument is None else os.fspath(argument)
    return choice.first(given, environment.get(PROFILE_VARIABLE), of_account)


def _from_values(values: dict[str, Any]) -> ServiceProfile:
    return ServiceProfile(**values)
