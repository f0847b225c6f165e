"""Models and contents of requests <-> plain values: the only file that knows cattrs, which it imports when needed.

A field that cannot be read becomes None, and `extra` keeps its raw value beside the undocumented fields, so that one strange
value hides nothing else. Only the identity (`id`, a machine's `node_name`) must be readable. A reader never guesses: it does
not turn null into "None", or 5 into "5".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import attrs

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Auth, Container, Image, ImageType, Machine, PaymentType
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.requests import ListQuery, MachineQuery, NewAuth, NewContainer, NewImage

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = [
    "UnreadableFieldError",
    "from_plain",
    "number_of",
    "plain_values",
    "read_whole",
    "structurers",
    "to_plain",
    "unstructurers",
]

_MODELS: tuple[type[Any], ...] = (Machine, Auth, Image, Container)
_NOT_ON_THE_WIRE = ("extra", "status_name")
_LARGEST_EXACT_FLOAT = 2**53
_MASK = "***"


class UnreadableFieldError(Exception):
    """The field that identifies a resource cannot be read."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem


def _text(value: Any, _: Any = None) -> str | None:
    if value is None or type(value) is str:
        return value
    raise ValueError("is not a text")


def read_whole(value: Any, _: Any = None) -> int | None:
    """Return a value that is a whole number or null; raise ValueError for any other value."""
    if value is None or type(value) is int:
        return value
    if type(value) is float and value.is_integer() and abs(value) <= _LARGEST_EXACT_FLOAT:
        return int(value)
    raise ValueError("is not a whole number")


def _number(value: Any, _: Any = None) -> float | None:
    if value is None or type(value) is float or type(value) is int:
        return value
    raise ValueError("not a number")


def _flag(value: Any, _: Any = None) -> bool | None:
    if value is None or type(value) is bool:
        return value
    raise ValueError("neither true nor false")


def _text_or_whole(value: Any, _: Any = None) -> str | int | None:
    if type(value) is str:
        return value
    return read_whole(value)


def _texts(value: Any, _: Any = None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if type(value) in (list, tuple):
        texts = cast("Iterable[Any]", value)
        if all(type(item) is str for item in texts):
            return tuple(texts)
    raise ValueError("not a list of texts")


def _price(value: Any, _: Any = None) -> Decimal | None:
    if value is None:
        return None
    if type(value) not in (str, int, float, Decimal):
        raise ValueError("not a price")
    try:
        price = Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError("not a price") from None
    # A number beyond these sizes is no price, and could fill the memory when it is written out.
    if not price.is_finite() or not -20 <= price.adjusted() <= 20:
        raise ValueError("not a price")
    if price < 0:
        raise ValueError("a negative price")
    return price.copy_abs()  # turns -0 into 0


def _moment(value: Any, _: Any = None) -> datetime | None:
    if value is None:
        return None
    if type(value) not in (str, datetime):
        raise ValueError("not a time")
    moment = value if type(value) is datetime else datetime.fromisoformat(value.strip())
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _identity(read: Callable[[Any], Any], kind: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        found = read(value)
        if found is None:
            raise ValueError(f"is missing, and must be {kind}")
        return found

    return structure


_READERS: Mapping[Any, Callable[[Any, Any], Any]] = {
    str | None: _text,
    int | None: read_whole,
    float | None: _number,
    bool | None: _flag,
    int | str | None: _text_or_whole,
    tuple[str, ...] | None: _texts,
    Decimal | None: _price,
    datetime | None: _moment,
    int: _identity(read_whole, "a whole number"),
    str: _identity(_text, "a text"),
}


def number_of(argument: str, value: PaymentType | ImageType | str | int, numbers: Mapping[str, int]) -> int:
    """Return the number that a member of an enumeration has on the wire. Its name may be in any case.

    Raises:
        InvalidArgumentError: the profile has no number for the member's name.
    """
    value = value.value if isinstance(value, (PaymentType, ImageType)) else value
    if type(value) is int:
        if not 0 <= value < 2**31:
            raise InvalidArgumentError(argument, "must be a number from 0 to 2147483647")
        return value
    number = numbers.get(value) if isinstance(value, str) else None
    if number is None and isinstance(value, str):
        same = [numbers[name] for name in numbers if name.casefold() == value.casefold()]
        number = same[0] if len(same) == 1 else None
    if number is None:
        raise InvalidArgumentError(
            argument, f"the profile has no number for {value!r}; it has {', '.join(numbers) or 'none'}"
        )
    return number


@lru_cache(maxsize=16)
def structurers(profile: ServiceProfile) -> Mapping[type[Any], Callable[[Any], Any]]:
    """Return the readers of all models for a profile. A reader raises UnreadableFieldError.

    The result is cached, because generating the readers takes milliseconds.
    """
    from cattrs import Converter

    converter = Converter(detailed_validation=False)
    image_types = {number: ImageType(name) for name, number in profile.image_types.items()}

    def image_type(value: Any, _: Any = None) -> ImageType | None:
        found = _text_or_whole(value)
        return None if found is None else image_types.get(cast(Any, found)) or ImageType(found)

    readers = {**_READERS, ImageType | None: image_type}
    for kind, reader in readers.items():
        converter.register_structure_hook(kind, reader)
    found = {model: _structurer(model, converter, readers) for model in _MODELS}
    if profile.container_statuses:
        found[Container] = _with_status_names(found[Container], profile)
    return found


def _with_status_names(structure: Callable[[Any], Any], profile: ServiceProfile) -> Callable[[Any], Any]:
    names = {number: name for name, number in profile.container_statuses.items()}

    def named(payload: dict[str, Any]) -> Any:
        container = structure(payload)
        name = names.get(container.status)
        return container if name is None else attrs.evolve(container, status_name=name)

    return named


def _structurer(
    model: type[Any], converter: Converter, readers: Mapping[Any, Callable[[Any, Any], Any]]
) -> Callable[[Any], Any]:
    from cattrs.gen import make_dict_structure_fn, override

    attrs.resolve_types(model)
    fields = {field.name: field for field in attrs.fields(model) if field.name not in _NOT_ON_THE_WIRE}
    names = fields.keys()
    left_out: dict[str, Any] = {
        field.name: override(omit=True) for field in attrs.fields(model) if field.name in _NOT_ON_THE_WIRE
    }
    read_all: Callable[[Any, Any], Any] = make_dict_structure_fn(model, converter, **left_out)

    def field_by_field(payload: dict[str, Any]) -> Any:
        values: dict[str, Any] = {}
        extra = {name: value for name, value in payload.items() if name not in names}
        for name, field in fields.items():
            try:
                values[name] = readers[field.type](payload.get(name), field.type)
            except ValueError as error:
                if field.default is attrs.NOTHING:
                    raise UnreadableFieldError(name, str(error)) from None
                extra[name] = payload[name]
        return model(**values, extra=extra)

    def structure(payload: dict[str, Any]) -> Any:
        try:
            found = read_all(payload, model)
        except Exception:  # noqa: BLE001  # of any kind: the next line finds the fields that cannot be read
            return field_by_field(payload)
        if unknown := payload.keys() - names:
            # Set on the frozen instance, because building a second one would cost as much as reading the first.
            object.__setattr__(found, "extra", {name: payload[name] for name in unknown})
        return found

    return structure


@lru_cache(maxsize=16)
def unstructurers(profile: ServiceProfile) -> Mapping[type[Any], Callable[[Any], dict[str, Any]]]:
    """Return the writers of all classes of `requests` for a profile. A writer raises InvalidArgumentError.

    The values of a query become texts. A query and a new image leave out fields that are None.
    """
    from cattrs import Converter
    from cattrs.gen import make_dict_unstructure_fn, override

    converter = Converter()
    payment_number = partial(number_of, "payment_type", numbers=profile.payment_types)
    as_text = override(unstruct_hook=str)

    def writer(kind: type[Any], *, omit: bool, **fields: Any) -> Callable[[Any], dict[str, Any]]:
        attrs.resolve_types(kind)
        return make_dict_unstructure_fn(kind, converter, _cattrs_omit_if_default=omit, **fields)

    numbers = dict.fromkeys(("gpu", "min_memory", "max_memory", "min_disk", "max_disk"), as_text)
    prices = dict.fromkeys(("min_price", "max_price"), override(unstruct_hook=_whole_price))
    names = override(unstruct_hook=",".join, rename=profile.gpu_names_parameter)
    machine_query = writer(MachineQuery, omit=True, gpu_names=names, **numbers, **prices)
    return {
        NewAuth: writer(NewAuth, omit=False),
        NewImage: writer(NewImage, omit=True),
        NewContainer: writer(NewContainer, omit=False, payment_type=override(unstruct_hook=payment_number)),
        MachineQuery: lambda query: {name: text for name, text in machine_query(query).items() if text is not None},
        ListQuery: writer(
            ListQuery,
            omit=True,
            image_type=as_text,
            marker=as_text,
            page_size=override(unstruct_hook=str, rename="limit"),
        ),
    }


def _whole_price(price: Decimal) -> str | None:
    """Return a price as a text; None for a price that is no whole number, because the query accepts only whole ones."""
    return str(int(price)) if price == price.to_integral_value() else None


@lru_cache(maxsize=1)
def _plain_converters() -> Mapping[bool, Converter]:
    """Return two converters to plain values: under True for values that JSON can hold, under False for Python's own."""
    from cattrs import Converter

    found = {json: Converter(unstruct_collection_overrides={tuple: list}) for json in (False, True)}
    for converter in found.values():
        converter.register_unstructure_hook(ImageType, lambda image_type: image_type.value)
    found[True].register_unstructure_hook(Decimal, str)
    found[True].register_unstructure_hook(datetime, datetime.isoformat)
    found[True].register_unstructure_hook(timedelta, timedelta.total_seconds)
    return found


def plain_values(values: Mapping[str, Any], *, json: bool) -> dict[str, Any]:
    """Return values without those that JSON cannot hold, if `json` is True: prices and times become texts."""
    plain: dict[str, Any] = _plain_converters()[json].unstructure(dict(values))
    return plain


def to_plain(model: Any, *, masked: Collection[str], json: bool) -> dict[str, Any]:
    """Return a model's fields as plain values, by their names. An empty `extra` is left out.

    Args:
        masked: the names of the fields whose values become `***`, also in `extra`.
        json: True to return only what JSON can hold: prices become texts, and times become texts in ISO 8601.
    """
    values: dict[str, Any] = _plain_converters()[json].unstructure(attrs.evolve(model, extra={}))
    if model.extra:
        values["extra"] = _copied(dict(model.extra))
    else:
        del values["extra"]
    for place in (values, values.get("extra", {})):
        place.update({name: _MASK for name in masked if place.get(name) is not None})
    return values


def _copied(value: Any) -> Any:
    """Copy a JSON value of any depth, so that no caller can change what a frozen model holds."""
    root = [value]
    left: list[Any] = [root]
    while left:
        outer = left.pop()
        is_array: bool = outer.__class__ is list
        for key in range(len(outer)) if is_array else list(outer):
            if outer[key].__class__ in (dict, list):
                outer[key] = outer[key].copy()
                left.append(outer[key])
    return root[0]


_PLAIN = ServiceProfile(image_types={}, payment_types={})


def from_plain(model: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a model from plain values: from what `to_plain` returned, or from a part of that.

    Raises:
        InvalidArgumentError: the field that identifies the resource is missing or cannot be read.
    """
    given = {name: value for name, value in values.items() if name not in _NOT_ON_THE_WIRE}
    structure = structurers(_PLAIN)
    kind = next(kind for kind in model.__mro__ if kind in structure)
    try:
        found = structure[kind](given)
    except UnreadableFieldError as error:
        raise InvalidArgumentError(error.field, error.problem) from None
    fields = {field.name: getattr(found, field.name) for field in attrs.fields(kind)}
    extra = values.get("extra", {})
    fields["extra"] = _copied({**found.extra, **(extra if isinstance(extra, Mapping) else {"extra": extra})})
    if "status_name" in fields:
        try:
            fields["status_name"] = _text(values.get("status_name"))
        except ValueError:
            fields["extra"]["status_name"] = values["status_name"]
    return model(**fields)
