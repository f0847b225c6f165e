"""Parsed payloads <-> models and contents of requests, by the rules of one service profile."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, Generic, TypeVar, cast

import attrs

from netmind_rentgpu.concurrency.turns import ITEMS_PER_TURN
from netmind_rentgpu.conversion import UnreadableFieldError, number_of, read_whole, structurers, unstructurers
from netmind_rentgpu.models import Auth, Container, Image, ImageType, Machine, PaymentType
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.requests import ListQuery, MachineQuery, NewAuth, NewContainer, NewImage

__all__ = ["MOST_SHAPE_ERRORS", "Codec", "ItemList", "ShapeError"]

Model = TypeVar("Model", Machine, Auth, Image, Container)

MOST_SHAPE_ERRORS: Final = 20
"""The number of unreadable items of a list that get an error of their own."""


class ShapeError(Exception):
    """A payload is not as documented. The message shows no part of the payload.

    Attributes:
        json_path: the faulty place, such as `$[3].id`.
        problem: the fault there, as a phrase that follows the place.
    """

    def __init__(self, json_path: str, problem: str) -> None:
        super().__init__(f"{json_path}: {problem}")
        self.json_path = json_path
        self.problem = problem


@attrs.define
class ItemList(Generic[Model]):
    """The items of a list.

    Attributes:
        items: the items that could be read, in order.
        unreadable: the errors of the first of the other items, `MOST_SHAPE_ERRORS` at most.
        unreadable_count: the number of all other items.
    """

    items: list[Model] = attrs.field(factory=list[Model])
    unreadable: list[ShapeError] = attrs.field(factory=list[ShapeError])
    unreadable_count: int = 0

    def add_unreadable(self, json_path: str, problem: str) -> None:
        """Count an item that cannot be read, and keep its error if it is one of the first."""
        self.unreadable_count += 1
        if self.unreadable_count <= MOST_SHAPE_ERRORS:
            self.unreadable.append(ShapeError(json_path, problem))


class Codec:
    """The reader of models and writer of requests for one profile."""

    def __init__(self, profile: ServiceProfile) -> None:
        self._profile = profile
        self._structure = structurers(profile)
        self._unstructure = unstructurers(profile)

    def one(self, model: type[Model], payload: Any, json_path: str = "$") -> Model:
        """Read one model from a parsed payload.

        Raises:
            ShapeError: the payload is no object, or has no readable identity.
        """
        if not isinstance(payload, dict):
            raise ShapeError(json_path, _mismatch(payload, "an object"))
        try:
            return cast(Model, self._structure[model](payload))
        except UnreadableFieldError as error:
            raise ShapeError(f"{json_path}.{error.field}", error.problem) from None

    def many(self, model: type[Model], payload: Any) -> Generator[None, None, ItemList[Model]]:
        """Read a list; yield after every `ITEMS_PER_TURN` items.

        Raises:
            ShapeError: the payload is no list.
        """
        if not isinstance(payload, list):
            raise ShapeError("$", _mismatch(payload, "a list"))
        found = ItemList[Model]()
        structure = self._structure[model]
        for position, item in enumerate(cast("list[Any]", payload)):
            if position and position % ITEMS_PER_TURN == 0:
                yield
            if type(item) is not dict:
                found.add_unreadable(f"$[{position}]", _mismatch(item, "an object"))
                continue
            try:
                found.items.append(structure(item))
            except UnreadableFieldError as error:
                found.add_unreadable(f"$[{position}].{error.field}", error.problem)
        return found

    def ids(self, payload: Any) -> Generator[None, None, list[int | None]]:
        """Read the id of each item of a list, in order; None for an item whose id cannot be read.

        Yields after every `ITEMS_PER_TURN` items.

        Raises:
            ShapeError: the payload is no list.
        """
        if not isinstance(payload, list):
            raise ShapeError("$", _mismatch(payload, "a list"))
        items = cast("list[Any]", payload)
        found = [_id_of(item) for item in items[:ITEMS_PER_TURN]]
        for begin in range(ITEMS_PER_TURN, len(items), ITEMS_PER_TURN):
            yield
            found += [_id_of(item) for item in items[begin : begin + ITEMS_PER_TURN]]
        return found

    def written(self, content: NewAuth | NewImage | NewContainer) -> dict[str, Any]:
        """Return the body of a request.

        Raises:
            InvalidArgumentError: the profile has no number for the payment type.
        """
        return self._unstructure[type(content)](content)

    def query(self, query: MachineQuery | ListQuery) -> dict[str, str]:
        """Return the variables of a request's query."""
        return self._unstructure[type(query)](query)

    def payment_type_number(self, payment_type: PaymentType | str | int) -> int:
        """Return the number that a payment type has on the wire.

        Raises:
            InvalidArgumentError: the profile has no number for its name.
        """
        return number_of("payment_type", payment_type, self._profile.payment_types)

    def image_type_number(self, image_type: ImageType | str | int) -> int:
        """Return the number that an image type has on the wire.

        Raises:
            InvalidArgumentError: the profile has no number for its name.
        """
        return number_of("image_type", image_type, self._profile.image_types)


def _id_of(item: Any) -> int | None:
    if type(item) is not dict:
        return None
    try:
        return read_whole(cast("dict[str, Any]", item).get("id"))
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
