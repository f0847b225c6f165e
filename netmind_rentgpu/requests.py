"""Contents of requests, as values that check themselves when they are created.

All fields but `page_size` have the wire's names. The checks enforce the documented limits and no others.
`conversion` turns names into numbers and values into texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, TypeAlias

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import PaymentType

__all__ = ["ListQuery", "MachineQuery", "NewAuth", "NewContainer", "NewImage"]

_Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _checked(check: Callable[[str, Any], object]) -> _Validator:
    """Return a validator that passes a field's name and value to a check of arguments."""

    def validate(_: object, field: attrs.Attribute[Any], value: Any) -> None:
        check(field.name, value)

    return validate


def _optional(validator: _Validator) -> Any:
    return attrs.field(default=None, validator=attrs.validators.optional(validator))


def _gpu_count(argument: str, value: int) -> int:
    return arguments.count(argument, value, arguments.MOST_GPUS)


def _gpu_names(value: Iterable[str] | str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(arguments.names("gpu_names", value))


def _min_price(value: Decimal | float | None) -> Decimal | None:
    return None if value is None else arguments.bound("min_price", value)


def _max_price(value: Decimal | float | None) -> Decimal | None:
    return None if value is None else arguments.bound("max_price", value)


def _marker(argument: str, value: Any) -> None:
    if type(value) not in (int, str):
        raise InvalidArgumentError(argument, "must be an id")


_text, _whole, _identifier = (_checked(arguments.text), _checked(arguments.whole), _checked(arguments.identifier))


@attrs.frozen(kw_only=True)
class NewAuth:
    """A password to store (`POST /v1/rentgpu/auths/`)."""

    value: str = attrs.field(
        repr=False, validator=_checked(lambda argument, value: arguments.password(value, argument))
    )


@attrs.frozen(kw_only=True)
class NewImage:
    """A custom image to create (`POST /v1/rentgpu/images/`). Fields that are None are not sent."""

    name: str = attrs.field(validator=_text)
    image_name: str = attrs.field(validator=_text)
    image_tag: str = attrs.field(validator=_text)
    image_label: str = attrs.field(validator=_text)
    description: str | None = _optional(_text)
    docker_username: str | None = _optional(_text)
    docker_passwd: str | None = attrs.field(default=None, repr=False, validator=attrs.validators.optional(_text))
    docker_registry: str | None = _optional(_text)
    public_port: str | None = _optional(_text)
    onstart: str | None = attrs.field(default=None, repr=False, validator=attrs.validators.optional(_text))
    options: str | None = attrs.field(
        default=None,
        repr=False,
        validator=attrs.validators.optional(_checked(lambda _, value: arguments.image_options(value))),
    )


@attrs.frozen(kw_only=True)
class NewContainer:
    """A container to rent (`POST /v1/rentgpu/containers/`)."""

    name: str = attrs.field(validator=_text)
    auth_id: int = attrs.field(validator=_identifier)
    gpu: int = attrs.field(validator=_checked(_gpu_count))
    node_name: str = attrs.field(validator=_text)
    image_template_id: int = attrs.field(validator=_identifier)
    payment_type: PaymentType | str | int


@attrs.frozen(kw_only=True)
class MachineQuery:
    """Filters of the machines on offer (`GET /v1/rentgpu/machines`). Fields that are None are not sent."""

    currency: str = attrs.field(validator=_text)
    region: str | None = _optional(_text)
    # Before `gpu_names`, because with some profiles `gpu_names` has the same name on the wire and replaces it.
    gpu: int | None = _optional(_checked(arguments.count))
    gpu_names: tuple[str, ...] | None = attrs.field(default=None, converter=_gpu_names)
    min_memory: int | None = _optional(_whole)
    max_memory: int | None = _optional(_whole)
    min_disk: int | None = _optional(_whole)
    max_disk: int | None = _optional(_whole)
    min_price: Decimal | None = attrs.field(default=None, converter=_min_price)
    max_price: Decimal | None = attrs.field(default=None, converter=_max_price)


@attrs.frozen(kw_only=True)
class ListQuery:
    """The query for one page of a list.

    Attributes:
        image_type: the number of an image type; None for lists of other resources.
        marker: the id after which the page begins; None for the first page.
        page_size: the number of items to ask for, `limit` on the wire.
    """

    image_type: int | None = None
    marker: int | str | None = _optional(_checked(_marker))
    page_size: int | None = _optional(_checked(arguments.count))
