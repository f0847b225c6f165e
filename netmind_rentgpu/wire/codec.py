"""JSON values <-> models: the only file that knows cattrs.

A field that cannot be read becomes None and its raw value is kept in `extra`, beside the fields nobody documented, so that
one strange value hides nothing else. Only what names the thing (`id`, a machine's `node_name`) must be readable. Nothing is
converted that is not the same thing in another form: no null becomes "None", no 5 becomes "5".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, TypeVar, cast

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Auth, Container, Image, ImageType, Machine, PaymentType
from netmind_rentgpu.profile import ServiceProfile

__all__ = ["Codec", "ShapeError"]

Model = TypeVar("Model", Machine, Auth, Image, Container)
_MODELS: tuple[type[Any], ...] = (Machine, Auth, Image, Container)
_NOT_ON_THE_WIRE = ("extra", "status_name")
_LARGEST_EXACT_FLOAT = 2**53


class ShapeError(Exception):
    """A payload is not what is documented. The message holds none of it.

    Attributes:
        json_path: where, as `$[3].id`.
        problem: what is wrong there.
    """

    def __init__(self, json_path: str, problem: str) -> None:
        super().__init__(f"{json_path}: {problem}")
        self.json_path = json_path
        self.problem = problem


class _FieldError(Exception):
    """What names a thing cannot be read."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem


def _text(value: Any, _: Any = None) -> str | None:
    if value is None or type(value) is str:
        return value
    raise ValueError("is not a text")


def _whole(value: Any, _: Any = None) -> int | None:
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
    return _whole(value)


def _texts(value: Any, _: Any = None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if type(value) is list:
        texts = cast("list[Any]", value)
        if all(type(item) is str for item in texts):
            return tuple(texts)
    raise ValueError("not a list of texts")


def _price(value: Any, _: Any = None) -> Decimal | None:
    if value is None:
        return None
    if type(value) not in (str, int, float):
        raise ValueError("not a price")
    try:
        price = Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError("not a price") from None
    # Beyond these sizes it is no price, and writing it out could fill the memory.
    if not price.is_finite() or not -20 <= price.adjusted() <= 20:
        raise ValueError("not a price")
    return price


def _moment(value: Any, _: Any = None) -> datetime | None:
    if value is None:
        return None
    if type(value) is not str:
        raise ValueError("not a time")
    moment = datetime.fromisoformat(value.strip())
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _identity(read: Callable[[Any], Any], kind: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        found = read(value)
        if found is None:
            raise ValueError(f"is missing: {kind}")
        return found

    return structure


_READERS: Mapping[Any, Callable[[Any, Any], Any]] = {
    str | None: _text,
    int | None: _whole,
    float | None: _number,
    bool | None: _flag,
    int | str | None: _text_or_whole,
    tuple[str, ...] | None: _texts,
    Decimal | None: _price,
    datetime | None: _moment,
    int: _identity(_whole, "a whole number"),
    str: _identity(_text, "a text"),
}


class Codec:
    """Reads models as one profile says, and writes the profile's numbers."""

    def __init__(self, profile: ServiceProfile) -> None:
        self._profile = profile
        self._structure = _structurers(profile)

    def one(self, model: type[Model], payload: Any, json_path: str = "$") -> Model:
        """Read one model from a parsed payload.

        Raises:
            ShapeError: it is no object, or has no readable identity.
        """
        if not isinstance(payload, dict):
            raise ShapeError(json_path, _mismatch(payload, "an object"))
        try:
            return cast(Model, self._structure[model](payload))
        except _FieldError as error:
            raise ShapeError(f"{json_path}.{error.field}", error.problem) from None

    def many(self, model: type[Model], payload: Any) -> tuple[list[Model], list[ShapeError]]:
        """Read a list: what could be read, in order, and what was wrong with the rest.

        Raises:
            ShapeError: it is no list.
        """
        if not isinstance(payload, list):
            raise ShapeError("$", _mismatch(payload, "a list"))
        found: list[Model] = []
        unreadable: list[ShapeError] = []
        structure = self._structure[model]
        for position, item in enumerate(cast("list[Any]", payload)):
            if type(item) is not dict:
                unreadable.append(ShapeError(f"$[{position}]", _mismatch(item, "an object")))
                continue
            try:
                found.append(structure(item))
            except _FieldError as error:
                unreadable.append(ShapeError(f"$[{position}].{error.field}", error.problem))
        return found, unreadable

    def ids(self, payload: Any) -> list[int | None]:
        """Read the id of each item of a list, in order; None for an item without one that can be read.

        Raises:
            ShapeError: it is no list.
        """
        if not isinstance(payload, list):
            raise ShapeError("$", _mismatch(payload, "a list"))
        return [_id_of(item) for item in cast("list[Any]", payload)]

    def payment_type_number(self, payment_type: PaymentType | str | int) -> int:
        """Return the number that stands for a payment type on the wire.

        Raises:
            InvalidArgumentError: the profile has no number for that name.
        """
        value = payment_type.value if isinstance(payment_type, PaymentType) else payment_type
        return _number_of("payment_type", value, self._profile.payment_types)

    def image_type_number(self, image_type: ImageType | str | int) -> int:
        """Return the number that stands for an image type on the wire.

        Raises:
            InvalidArgumentError: the profile has no number for that name.
        """
        value = image_type.value if isinstance(image_type, ImageType) else image_type
        return _number_of("image_type", value, self._profile.image_types)


def _id_of(item: Any) -> int | None:
    if type(item) is not dict:
        return None
    try:
        return _whole(cast("dict[str, Any]", item).get("id"))
    except ValueError:
        return None


def _mismatch(payload: Any, wanted: str) -> str:
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "a boolean",
    }
    return f"is {kinds.get(type(cast('object', payload)), 'empty or null')} where {wanted} belongs"


def _number_of(argument: str, value: str | int, numbers: Mapping[str, int]) -> int:
    if type(value) is int:
        if not 0 <= value < 2**31:
            raise InvalidArgumentError(argument, "is not a number that an enumeration could have")
        return value
    number = numbers.get(value) if isinstance(value, str) else None
    if number is None:
        raise InvalidArgumentError(
            argument, f"the profile has no number for {value!r}; it has {', '.join(numbers) or 'none'}"
        )
    return number


@lru_cache(maxsize=16)
def _structurers(profile: ServiceProfile) -> Mapping[type[Any], Callable[[Any], Any]]:
    """Build the readers of all models for a profile. Generating them takes milliseconds, so they are shared."""
    converter = Converter(detailed_validation=False)
    image_types = {number: ImageType(name) for name, number in profile.image_types.items()}

    def image_type(value: Any, _: Any = None) -> ImageType | None:
        found = _text_or_whole(value)
        return None if found is None else image_types.get(cast(Any, found)) or ImageType(found)

    readers = {**_READERS, ImageType | None: image_type}
    for kind, reader in readers.items():
        converter.register_structure_hook(kind, reader)
    structurers = {model: _structurer(model, converter, readers) for model in _MODELS}
    if profile.container_statuses:
        structurers[Container] = _with_status_names(structurers[Container], profile)
    return structurers


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
                    raise _FieldError(name, str(error)) from None
                extra[name] = payload[name]
        return model(**values, extra=extra)

    def structure(payload: dict[str, Any]) -> Any:
        try:
            found = read_all(payload, model)
        except Exception:  # noqa: BLE001  # whatever it stumbled over, each field is now read by itself
            return field_by_field(payload)
        if unknown := payload.keys() - names:
            # Nobody else has seen this instance yet, and building it twice would cost as much as reading it.
            object.__setattr__(found, "extra", {name: payload[name] for name in unknown})
        return found

    return structure
