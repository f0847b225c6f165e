"""What `client.rent` and `client.offers` are made of: from a user's words to a rental that can be entered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from decimal import Decimal
from math import inf

import attrs

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import InvalidArgumentError, NoMachineError
from netmind_rentgpu.models import Auth, Image, Machine, PaymentType
from netmind_rentgpu.rentals.desk import Desk, now
from netmind_rentgpu.rentals.hold import Hold
from netmind_rentgpu.rentals.market import Ranking
from netmind_rentgpu.rentals.names import LATEST
from netmind_rentgpu.rentals.needs import Needs, Offer, OfferKey, ranked, resolved_gpu_names, same, version, why_none
from netmind_rentgpu.rentals.reaper import reap
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.rentals.tries import Order, Taken
from netmind_rentgpu.resources import arguments
from netmind_rentgpu.ssh.credentials import check_asyncssh
from netmind_rentgpu.waiting.waits import checked_timeout

__all__ = ["Renting", "Wish"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_NO_CURRENCY = "cannot be kept to: in which currency the balance is, the profile's payment_types do not tell"


@attrs.frozen(kw_only=True)
class Wish:
    """What a user asks for, checked.

    Attributes:
        gpu_names: as they were given: which GPUs they mean depends on what is on offer, too.
        needs: the rest.
    """

    gpu_names: tuple[str, ...] | None
    needs: Needs
    currency: str
    payment_type: PaymentType | str | int
    key: OfferKey | None


class Renting:
    """Rents for one client."""

    def __init__(self, desk: Desk, payment_number: Callable[[PaymentType | str | int], int]) -> None:
        """Prepare.

        Args:
            payment_number: finds a payment type's number on the wire.
        """
        self._desk = desk
        self._payment_number = payment_number
        self._may_log_in = False
        self._reaped: SingleFlight[None] = SingleFlight(fresh=inf)
        self._ranked_for: tuple[list[Machine], Wish, Ranking, str] | None = None

    def wish(
        self,
        *,
        gpu_name: str | Iterable[str] | None,
        gpus: int,
        regions: str | Iterable[str] | None,
        max_price: Decimal | float | None,
        min_memory: float | None,
        min_gpu_memory: float | None,
        min_disk: float | None,
        min_cuda: str | None,
        nvlink: bool | None,
        labels: str | Iterable[str],
        key: OfferKey | None,
        payment_type: PaymentType | str | int,
    ) -> Wish:
        """Check what a user asks for.

        Raises:
            InvalidArgumentError: an argument that cannot be used.
        """
        if nvlink is not None and not isinstance(nvlink, bool):
            raise InvalidArgumentError("nvlink", f"must be True, False or None, not {nvlink!r}")
        if key is not None and not callable(key):
            raise InvalidArgumentError("key", "must be a function of an offer")
        currency = self._currency(payment_type)
        if currency is None and max_price is not None:
            raise InvalidArgumentError("max_price", _NO_CURRENCY)
        cuda = None if min_cuda is None else version(arguments.text("min_cuda", min_cuda))
        if cuda == ():
            raise InvalidArgumentError("min_cuda", f"must be a version, as '12.4', not {min_cuda!r}")
        return Wish(
            gpu_names=None if gpu_name is None else tuple(_names("gpu_name", gpu_name)),
            needs=Needs(
                gpus=arguments.count("gpus", gpus, arguments.MOST_GPUS),
                regions=None if regions is None else frozenset(same(one) for one in _names("regions", regions)),
                max_price=None if max_price is None else arguments.bound("max_price", max_price),
                min_memory=_least("min_memory", min_memory),
                min_gpu_memory=_least("min_gpu_memory", min_gpu_memory),
                min_disk=_least("min_disk", min_disk),
                min_cuda=cuda,
                nvlink=nvlink,
                labels=frozenset(label.casefold() for label in _names("labels", labels)) if labels else frozenset(),
            ),
            currency=self._desk.profile.currency if currency is None else currency,
            payment_type=payment_type,
            key=key,
        )

    def _currency(self, payment_type: PaymentType | str | int) -> str | None:
        """Return the name of a balance; None for a number that the profile has no name for."""
        number = self._payment_number(payment_type)
        value = payment_type.value if isinstance(payment_type, PaymentType) else payment_type
        if isinstance(value, str):
            return value
        return next((name for name, known in self._desk.profile.payment_types.items() if known == number), None)

    async def offers(self, wish: Wish) -> list[Offer]:
        """Return the offers that meet a wish, the best first.

        Raises:
            InvalidArgumentError: the wish cannot be understood.
            RentGPUError: the machines could not be listed.
        """
        return list((await self._ranked(wish))[0].offers)

    def rent(
        self,
        wish: Wish,
        *,
        image: int | str | Image,
        auth: int | str | Auth | None,
        ttl: timedelta,
        budget: Decimal | float | None,
        keep: bool,
        timeout: float,
    ) -> AsyncRental:
        """Return a rental of the first offer that can be had.

        Raises:
            InvalidArgumentError: an argument that cannot be used.
            ConfigurationError: asyncssh is missing.
        """
        if not self._may_log_in:
            check_asyncssh()
            # Looking for it costs as much as a create, so that this is done once.
            self._may_log_in = True
        if not isinstance(ttl, timedelta) or not timedelta(0) < ttl < LATEST - now():
            raise InvalidArgumentError(
                "ttl", f"must be a timedelta above 0, as timedelta(hours=1), and end before {LATEST:%Y}: {ttl!r}"
            )
        limit = None if budget is None else arguments.bound("budget", budget)
        if limit is not None and limit <= 0:
            raise InvalidArgumentError("budget", f"must be above 0: {budget!r}")
        if limit is not None and self._currency(wish.payment_type) is None:
            raise InvalidArgumentError("budget", _NO_CURRENCY)
        if keep and limit is not None:
            raise InvalidArgumentError("budget", "what is kept is never deleted, so that no budget can be kept to")
        _check_supplies(image, auth)
        desired = wish if limit is None else attrs.evolve(wish, needs=attrs.evolve(wish.needs, priced=True))

        def allowance(offer: Offer) -> timedelta | None:
            return None if keep else min(ttl, _affordable(limit, offer))

        async def begin(hold: Hold) -> Taken:
            await self._reaped.get(self._reap_once)
            supplies = self._desk.supplies
            order = Order(
                image_id=await supplies.image_id(image),
                auth_id=await supplies.auth_id(auth),
                payment_type=wish.payment_type,
                allowance=allowance,
            )
            ranking, excuse = await self._ranked(desired)
            if not ranking.offers:
                raise NoMachineError(excuse)
            record, container, offer = await hold.take(ranking, order)
            return Taken(
                record=record,
                container=container,
                machine=offer.machine,
                by_budget=_affordable(limit, offer) < ttl,
                kept=keep,
            )

        return AsyncRental(self._desk, begin, timeout=checked_timeout(timeout))

    async def _ranked(self, wish: Wish) -> tuple[Ranking, str]:
        """Return the offers that meet a wish, and, where there are none, why."""
        self._desk.check_usable()
        machines = await self._desk.market.machines(wish.currency)
        # Those who wish the same at the same time share the work.
        if self._ranked_for is None or self._ranked_for[0] is not machines or self._ranked_for[1] != wish:
            self._ranked_for = (machines, wish, *self._rank(machines, wish))
        return self._ranked_for[2:]

    def _rank(self, machines: list[Machine], wish: Wish) -> tuple[Ranking, str]:
        needs, profile = wish.needs, self._desk.profile
        if wish.gpu_names is not None:
            on_offer = [machine.gpu_name for machine in machines if machine.gpu_name is not None]
            needs = attrs.evolve(needs, gpu_names=resolved_gpu_names(wish.gpu_names, on_offer))
        offers = ranked(machines, needs, profile, wish.currency, wish.key)
        return Ranking(offers), "" if offers else why_none(machines, needs, profile)

    async def _reap_once(self) -> None:
        """Delete what nobody alive owns, in one attempt each: whoever rents waits for it.

        That it fails is no reason not to rent, unless the state file is broken.
        """
        report = await reap(self._desk, patient=False)
        for name, error in report.failed:
            logger.warning("%s is nobody's and could not be deleted: %s", name, error)


def _affordable(budget: Decimal | None, offer: Offer) -> timedelta:
    """Return how long a budget lasts."""
    if budget is None or not offer.hourly_price:
        return timedelta.max
    hours = budget / offer.hourly_price
    return timedelta(hours=float(hours)) if hours < 24 * 365 * 1000 else timedelta.max


def _names(argument: str, value: str | Iterable[str]) -> list[str]:
    """Return names; a single text is one. No comma joins them on the wire."""
    if not isinstance(value, Iterable):
        raise InvalidArgumentError(argument, f"must be texts, not {type(value).__name__}")
    names = [arguments.text(argument, name) for name in ([value] if isinstance(value, str) else value)]
    if not names or not all(same(name) for name in names):
        raise InvalidArgumentError(argument, "names nothing; leave it out for no filter")
    return names


def _least(argument: str, value: float | None) -> float | None:
    return None if value is None else float(arguments.bound(argument, value))


def _check_supplies(image: object, auth: object) -> None:
    if not isinstance(image, (int, str, Image)):
        raise InvalidArgumentError("image", f"must be an id, a name, a label or an Image, not {type(image).__name__}")
    if isinstance(auth, str):
        arguments.password(auth, "auth")
    elif auth is not None and not isinstance(auth, (int, Auth)):
        raise InvalidArgumentError("auth", f"must be an id, a password, an Auth or None, not {type(auth).__name__}")
