"""`client.rent` and `client.offers`: from a user's arguments to a rental that can be entered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from math import inf

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.conditions import Condition, checked
from netmind_rentgpu.errors import InsufficientBudgetError, InvalidArgumentError, NoMachineError, StateFileError
from netmind_rentgpu.gpu_names import normalized, resolved_gpu_names
from netmind_rentgpu.models import Auth, Image, Machine, PaymentType
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.deadlines import ceiling_after
from netmind_rentgpu.rentals.ledger.names import LATEST
from netmind_rentgpu.rentals.ledger.start_history import ImageStarts
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental, ProvisionSpec
from netmind_rentgpu.rentals.lifecycle.deletion import write_behind, write_best_effort
from netmind_rentgpu.rentals.lifecycle.events import EventOptions
from netmind_rentgpu.rentals.lifecycle.idleness import IdleOptions
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner
from netmind_rentgpu.rentals.lifecycle.reaper import reap
from netmind_rentgpu.rentals.lifecycle.starting import FailedStarts, StartLimits
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.rentals.selection.catalog import OfferQueue
from netmind_rentgpu.rentals.selection.offers import (
    Offer,
    OfferKey,
    Requirements,
    explain_no_match,
    ranked,
    version,
)
from netmind_rentgpu.ssh.credentials import check_asyncssh
from netmind_rentgpu.tables import Table

__all__ = ["RentalRequest", "Renting"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_NO_CURRENCY = "cannot be enforced: the profile's payment_types do not name the currency of this payment_type"


@attrs.frozen(kw_only=True)
class RentalRequest:
    """A user's request for a machine, with checked arguments.

    Attributes:
        gpu_names: the GPU names as given, because their meaning depends on the machines on offer, too; None for any GPU.
        requirements: all other requirements for the machine.
    """

    gpu_names: tuple[str, ...] | None
    requirements: Requirements
    currency: str
    payment_type: PaymentType | str | int
    key: OfferKey | None


class Renting:
    """Rents for one client.

    Attributes:
        context: what the client's rentals share.
    """

    def __init__(self, context: RentalContext, payment_number: Callable[[PaymentType | str | int], int]) -> None:
        """Set up.

        Args:
            payment_number: returns a payment type's number on the wire.
        """
        self.context: RentalContext = context
        self._payment_number = payment_number
        self._may_log_in = False
        self._reaped: SingleFlight[None] = SingleFlight(fresh=inf)
        self._gpu_names: set[str] = set()
        self._ranked_for: tuple[list[Machine], RentalRequest, OfferQueue, str] | None = None

    def request(
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
        exclude: str | Iterable[str],
        key: OfferKey | None,
        payment_type: PaymentType | str | int,
    ) -> RentalRequest:
        """Check a user's arguments.

        Raises:
            InvalidArgumentError: an argument cannot be used.
        """
        if nvlink is not None and not isinstance(nvlink, bool):
            raise InvalidArgumentError("nvlink", f"must be True, False or None, not {arguments.shown_value(nvlink)}")
        if key is not None and not callable(key):
            raise InvalidArgumentError("key", f"must be a function that takes an offer, not {type(key).__name__}")
        currency = self.currency(payment_type)
        if currency is None and max_price is not None:
            raise InvalidArgumentError("max_price", _NO_CURRENCY)
        cuda = None if min_cuda is None else version(arguments.text("min_cuda", min_cuda))
        if cuda == ():
            raise InvalidArgumentError(
                "min_cuda", f"must be a version such as '12.4', not {arguments.shown_value(min_cuda)}"
            )
        return RentalRequest(
            gpu_names=None if gpu_name is None else tuple(_names("gpu_name", gpu_name)),
            requirements=Requirements(
                gpus=arguments.count("gpus", gpus, arguments.MOST_GPUS),
                regions=None if regions is None else frozenset(map(normalized, _names("regions", regions))),
                max_price=None if max_price is None else arguments.bound("max_price", max_price),
                min_memory=_least("min_memory", min_memory),
                min_gpu_memory=_least("min_gpu_memory", min_gpu_memory),
                min_disk=_least("min_disk", min_disk),
                min_cuda=cuda,
                nvlink=nvlink,
                exclude=frozenset(arguments.texts("exclude", exclude)),
                labels=frozenset(label.casefold() for label in _names("labels", labels)) if labels else frozenset(),
            ),
            currency=self.context.profile.currency if currency is None else currency,
            payment_type=payment_type,
            key=key,
        )

    def currency(self, payment_type: PaymentType | str | int) -> str | None:
        """Return the currency of a payment type; None for a number that the profile does not name."""
        number = self._payment_number(payment_type)
        value = payment_type.value if isinstance(payment_type, PaymentType) else payment_type
        if isinstance(value, str):
            # The profile's spelling, because the service may know no other.
            return next(
                (name for name in self.context.profile.payment_types if name.casefold() == value.casefold()), value
            )
        return next((name for name, known in self.context.profile.payment_types.items() if known == number), None)

    async def offers(self, request: RentalRequest) -> list[Offer]:
        """Return the offers that meet a request, the best first.

        Raises:
            InvalidArgumentError: a GPU name is ambiguous, or `key` cannot sort the offers.
            RentGPUError: the machines could not be listed.
        """
        return Table((await self._ranked(request))[0].offers)

    def rent(
        self,
        request: RentalRequest,
        *,
        image: int | str | Image | None,
        auth: int | str | Auth | None,
        label: str | None,
        ttl: timedelta,
        extendable_to: timedelta | None,
        budget: Decimal | float | None,
        shared_budget: str | None,
        idle: IdleOptions,
        keep: bool,
        fail: Condition | None,
        limits: StartLimits,
        events: EventOptions,
    ) -> AsyncRental:
        """Return a rental, which rents the first available offer once it is entered.

        Raises:
            InvalidArgumentError: an argument cannot be used.
            ConfigurationError: asyncssh is missing.
        """
        if not self._may_log_in:
            check_asyncssh()
            # Checked once, because this check costs as much as a create.
            self._may_log_in = True
        if not isinstance(ttl, timedelta) or not timedelta(0) < ttl < LATEST - self.context.clock().wall:
            raise InvalidArgumentError(
                "ttl",
                f"must be a timedelta above 0 that ends before the year {LATEST:%Y}, not {arguments.shown_value(ttl)}",
            )
        ceiling = ceiling_after(ttl) if extendable_to is None else extendable_to
        if not isinstance(ceiling, timedelta) or ceiling < ttl:
            raise InvalidArgumentError(
                "extendable_to", f"must be a timedelta of at least the ttl, not {arguments.shown_value(ceiling)}"
            )
        limit = None if budget is None else arguments.bound("budget", budget)
        if limit is not None and limit <= 0:
            raise InvalidArgumentError("budget", f"must be above 0: {arguments.shown_value(budget)}")
        if limit is not None and self.currency(request.payment_type) is None:
            raise InvalidArgumentError("budget", _NO_CURRENCY)
        if keep and extendable_to is not None:
            raise InvalidArgumentError(
                "extendable_to", "has no effect with keep=True, which never deletes the container"
            )
        if shared_budget is not None and self.currency(request.payment_type) is None:
            raise InvalidArgumentError("shared_budget", _NO_CURRENCY)
        for argument, value in (("budget", limit), ("shared_budget", shared_budget), ("idle_timeout", idle.timeout)):
            if keep and value is not None:
                raise InvalidArgumentError(
                    argument, "cannot be enforced with keep=True, which never deletes the container"
                )
        _check_image_and_auth(image, auth)
        desired = (
            request
            if limit is None and shared_budget is None
            else attrs.evolve(request, requirements=attrs.evolve(request.requirements, priced=True))
        )

        source = _NextOffers(
            self.context,
            image=image,
            auth=auth,
            payment_type=request.payment_type,
            label=None if label is None else arguments.label(label),
            ttl=None if keep else ttl,
            extendable_to=ceiling,
            budget=limit,
            shared_budget=None if shared_budget is None else arguments.label(shared_budget, "shared_budget"),
            idle_timeout=idle.timeout,
            reap=lambda: self._reaped.get(self._reap_once),
            rank=lambda: self._ranked(desired),
            rank_next=lambda: self._ranked_next(desired),
        )
        return AsyncRental(
            self.context,
            source,
            limits=limits,
            fail=None if fail is None else checked("fail", fail),
            events=events,
            idle=idle,
        )

    async def _ranked(self, request: RentalRequest) -> tuple[OfferQueue, str]:
        """Return the offers that meet a request, and the reason if there are none."""
        self.context.check_usable()
        return self._ranked_of(await self.context.catalog.machines(request.currency), request)

    async def _ranked_next(self, request: RentalRequest) -> tuple[OfferQueue, str]:
        """Return the same, by the next list of the machines that rentals which wait for stock share."""
        self.context.check_usable()
        return self._ranked_of(await self.context.catalog.next_machines(request.currency), request)

    def _ranked_of(self, machines: list[Machine], request: RentalRequest) -> tuple[OfferQueue, str]:
        # Rentals with the same request and the same list of machines share one queue.
        if self._ranked_for is None or self._ranked_for[0] is not machines or self._ranked_for[1] != request:
            self._ranked_for = (machines, request, *self._rank(machines, request))
        return self._ranked_for[2:]

    def _rank(self, machines: list[Machine], request: RentalRequest) -> tuple[OfferQueue, str]:
        requirements, profile = request.requirements, self.context.profile
        if request.gpu_names is not None:
            # A GPU that is out of stock keeps its name, because a rental may wait for it.
            self._gpu_names.update(machine.gpu_name for machine in machines if machine.gpu_name is not None)
            requirements = attrs.evolve(requirements, gpu_names=resolved_gpu_names(request.gpu_names, self._gpu_names))
        offers = ranked(machines, requirements, profile, request.currency, request.key)
        return OfferQueue(offers), "" if offers else explain_no_match(machines, requirements, profile)

    async def _reap_once(self) -> None:
        """Run the reaper with one attempt for each deletion, because a caller waits to rent.

        A failed deletion is only logged, because it is no reason not to rent.

        Raises:
            StateFileError: the state file cannot be used.
        """
        report = await reap(self.context, patient=False)
        for name, error in report.failed:
            logger.warning("could not reap %s: %s; its record stays, so run `rentals.reap()`", name, error)
        for record in report.elsewhere:
            logger.warning(
                "did not reap %s: it is on record for another token, which nothing proves to be this account's; reap with"
                " that token",
                record.name,
            )


class _NextOffers:
    """The source of a new rental's machine: one offer after the other, until a machine starts.

    Attributes:
        failed: the machines that did not start.
        label: the user's own name for the rental; None if it has none.
        until: the time at which the rental ends at the latest, as its fleet does, in UTC; None for its own limits alone.
        has_others: True, because another machine may start.
    """

    def __init__(
        self,
        context: RentalContext,
        *,
        image: int | str | Image | None,
        auth: int | str | Auth | None,
        payment_type: PaymentType | str | int,
        label: str | None,
        ttl: timedelta | None,
        extendable_to: timedelta,
        budget: Decimal | None,
        shared_budget: str | None,
        idle_timeout: timedelta | None,
        reap: Callable[[], Awaitable[object]],
        rank: Callable[[], Awaitable[tuple[OfferQueue, str]]],
        rank_next: Callable[[], Awaitable[tuple[OfferQueue, str]]],
    ) -> None:
        self._context = context
        self._image = image
        self._auth = auth
        self._payment_type = payment_type
        self._ttl = ttl
        self._extendable_to = extendable_to
        self._budget = budget
        self._shared_budget = shared_budget
        self._idle_timeout = idle_timeout
        self._reap = reap
        self._rank = rank
        self._rank_next = rank_next
        self._image_id = 0
        self._is_out_of_stock = False
        self.failed: FailedStarts = FailedStarts()
        self.label: str | None = label
        self.until: datetime | None = None
        self.has_others: bool = True

    async def provision(self, provisioner: Provisioner) -> ProvisionedRental:
        """Rent the best offer that is available."""
        self._is_out_of_stock = False
        if self.until is not None and self.until <= self._context.clock().wall:
            raise NoMachineError(
                f"no machine was available until the end of the fleet, {self.until:%Y-%m-%d %H:%M:%S} UTC"
            )
        await self._reap()
        await self._context.check_login()
        image = await self._context.images.resolved(self._image)
        self._image_id = image.id
        self._check_budget_left()
        spec = ProvisionSpec(
            image_id=image.id,
            image=image.text,
            auth_id=await self._context.password.auth_id(self._auth),
            payment_type=self._payment_type,
            label=self.label,
            ttl=self._ttl,
            until=self.until,
            extendable_to=self._extendable_to,
            budget=self._budget,
            shared_budget=self._shared_budget,
            idle_timeout=self._idle_timeout,
            spent_before=self.failed.cost or Decimal(0),
        )
        queue, reason = await self._rank()
        self._is_out_of_stock = True
        if not queue.offers:
            before = f"; before that, these machines did not start: {self.failed}" if self.failed else ""
            raise NoMachineError(f"{reason}{before}", refusals=tuple(self.failed.by_node.values()))
        starts = await self._context.starts.of_image(self._image_id, self._context.clock().wall)
        provision = partial(
            provisioner.provision, queue, spec, failed=self.failed.by_node, failed_lately=starts.failed_on
        )
        try:
            record, container, offer = await provision()
        except InsufficientBudgetError:
            # A killed process, or a create whose answer was lost, may hold a part of the budget.
            await reap(self._context, patient=False)
            record, container, offer = await provision()
        self._is_out_of_stock = False
        if self._budget is not None and not offer.hourly_price:
            logger.warning(
                "%s has a listed price of 0, so only its ttl ends the rental, and never its budget", record.name
            )
        return ProvisionedRental(
            record=record,
            container=container,
            machine=offer.machine,
            kept=self._ttl is None,
        )

    def _check_budget_left(self) -> None:
        """Check that the machines that did not start have left something of the budget.

        Raises:
            NoMachineError: they have spent it.
        """
        if self._budget is None or self._budget > (self.failed.cost or 0):
            return
        refusals = tuple(self.failed.by_node.values())
        raise NoMachineError(f"the budget was spent on machines that did not start: {self.failed}", refusals=refusals)

    async def wait_for_stock(self, error: NoMachineError) -> None:
        """Wait until an offer may be available."""
        if not self._is_out_of_stock:
            raise error
        catalog = self._context.catalog
        while True:
            queue, _ = await self._rank_next()
            if catalog.next_offer(queue, self.failed.by_node) is not None:
                return

    async def remember_failure(self, provisioned: ProvisionedRental) -> None:
        """Record for other rentals that a machine did not start."""
        node_name = provisioned.machine.node_name
        now = self._context.clock().wall
        await write_best_effort(self._context.starts.record_soon(node_name, self._image_id, now, failed=True))

    def remember_success(self, provisioned: ProvisionedRental) -> None:
        """Record for other rentals that a machine has started, without waiting for the write."""
        node_name = provisioned.machine.node_name
        now = self._context.clock().wall
        write_behind(self._context.starts.record_soon(node_name, self._image_id, now, failed=False))

    async def why_no_other(self) -> str | None:
        """Return why no other machine is tried after one more that did not start; None if another is."""
        starts = ImageStarts()
        with suppress(StateFileError):
            starts = await self._context.starts.of_image(self._image_id, self._context.clock().wall)
        return self.failed.why_no_other(image_fails_everywhere=starts.fails_everywhere)


def _names(argument: str, value: str | Iterable[str]) -> list[str]:
    """Return an argument's names; a single text is one name. A name may hold a comma, because it is not sent."""
    names = arguments.texts(argument, value)
    if not names or not all(normalized(name) for name in names):
        raise InvalidArgumentError(argument, "names nothing; leave it out for no filter")
    return names


def _least(argument: str, value: float | None) -> float | None:
    return None if value is None else float(arguments.bound(argument, value))


def _check_image_and_auth(image: object, auth: object) -> None:
    if image is not None and not isinstance(image, (int, str, Image)):
        raise InvalidArgumentError("image", f"must be an id, a name, a label or an Image, not {type(image).__name__}")
    if isinstance(auth, str):
        arguments.password(auth, "auth")
    elif auth is not None and not isinstance(auth, (int, Auth)):
        raise InvalidArgumentError("auth", f"must be an id, a password, an Auth or None, not {type(auth).__name__}")
