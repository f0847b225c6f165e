"""`client.rent`, `client.rent_many` and `client.offers`. Slow imports wait until they are used."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypedDict, Unpack, cast

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.literals import GPUName, RegionCode
from netmind_rentgpu.models import PaymentType

if TYPE_CHECKING:
    from netmind_rentgpu.conditions import Condition
    from netmind_rentgpu.models import Auth, Image
    from netmind_rentgpu.rentals.fleet import AsyncFleet
    from netmind_rentgpu.rentals.fleet_rentals import FleetRentals, RentalTerms
    from netmind_rentgpu.rentals.lifecycle.events import OnRentalEvent
    from netmind_rentgpu.rentals.lifecycle.idleness import IdleWhen
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.rentals.renting import Renting
    from netmind_rentgpu.rentals.selection.offers import Offer, OfferKey

__all__ = ["MachineOptions", "RentOptions", "RentingCalls"]


_NOTICE: Final = timedelta(minutes=5)


class MachineOptions(TypedDict, total=False):
    """The arguments of `rent` that choose a machine and its login, and that a cluster of machines has, too."""

    min_memory: float | None
    min_gpu_memory: float | None
    min_disk: float | None
    min_cuda: str | None
    nvlink: bool | None
    labels: Iterable[str]
    exclude: Iterable[str]
    key: OfferKey | None
    auth: int | str | Auth | None
    payment_type: PaymentType | str | int
    label: str | None
    wait_for_stock: timedelta | None


class RentOptions(MachineOptions, total=False):
    """The arguments of `rent_many` that mean the same as those of `rent`."""

    image: int | str | Image | None
    gpu_name: GPUName | Iterable[GPUName] | None
    gpus: int
    regions: RegionCode | Iterable[RegionCode] | None
    max_price: Decimal | float | None
    shared_budget: str | None
    idle_timeout: timedelta | None
    idle_when: IdleWhen | None
    fail: Condition | None
    start_timeout: float
    notice: timedelta | None
    on_event: OnRentalEvent | None


class RentingCalls:
    """The calls of a client that rent machines."""

    _renting: Renting

    def rent(
        self,
        *,
        image: int | str | Image | None = None,
        gpu_name: GPUName | Iterable[GPUName] | None = None,
        gpus: int = 1,
        regions: RegionCode | Iterable[RegionCode] | None = None,
        max_price: Decimal | float | None = None,
        min_memory: float | None = None,
        min_gpu_memory: float | None = None,
        min_disk: float | None = None,
        min_cuda: str | None = None,
        nvlink: bool | None = None,
        labels: Iterable[str] = (),
        exclude: Iterable[str] = (),
        key: OfferKey | None = None,
        auth: int | str | Auth | None = None,
        payment_type: PaymentType | str | int = PaymentType.USD,
        label: str | None = None,
        ttl: timedelta = timedelta(hours=24),
        extendable_to: timedelta | None = None,
        budget: Decimal | float | None = None,
        shared_budget: str | None = None,
        idle_timeout: timedelta | None = None,
        idle_when: IdleWhen | None = None,
        wait_for_stock: timedelta | None = None,
        keep: bool = False,
        fail: Condition | None = None,
        start_timeout: float = 600,
        timeout: float = 1800,
        notice: timedelta | None = _NOTICE,
        on_event: OnRentalEvent | None = None,
    ) -> AsyncRental:
        """Return a rental to enter: `async with gpu.rent(...) as rental: ...`. Needs the extra `ssh`.

        Entering the block rents the best machine that is available, and waits until the client has logged in to its
        container. Leaving the block deletes the container, however the block ends. A container that this process could not
        delete stays on record in the state file: `rentals.reap` deletes it, and so does the first `rent` of the next client.

        A field that the service leaves out rules a machine out only if it is the GPU's name or the price. Machines with
        missing fields rank lower.

        If a container does not start, the client deletes it and tries the next machine. It gives up after three such
        machines, and at once if another machine would not help, for example because the service does not show the password.
        For half an hour, a machine that did not start an image ranks last for that image, in all processes that share the
        state file, unless it starts the image meanwhile.

        Args:
            image: the image to start: an id, an `Image`, or the name, `repository:tag` or label of exactly one image among
                the official images and the account's own. None for the official image for PyTorch of the highest version, or
                for the only official image.
            gpu_name: the GPUs that will do, each by its name or an unambiguous part of it: "RTX 4090", "h100".
            gpus: the number of GPUs, 1 to 12.
            regions: the regions that will do, as two-letter codes.
            max_price: the highest `Machine.price`, which is for one GPU and one hour unless the profile says otherwise.
            min_memory, min_disk: as in `machines.list`.
            min_gpu_memory: the lowest `Machine.gpu_memory`.
            min_cuda: the lowest CUDA version, such as "12.4".
            nvlink: True for machines with NVLink, False for machines without; None for both.
            labels: the labels that a machine must have, all of them; upper and lower case are the same.
            exclude: the `node_name`s of machines not to rent.
            key: a function of an `Offer` whose result sorts the offers, the lowest first. By default the hourly price sorts
                them, with free machines last, because a price of 0 may be a mistake.
            auth: the password of the SSH login: an auth's id, an `Auth`, or a text. By default the client creates one
                password for this account, and keeps it in the state file.
            payment_type: the balance to charge; machines are listed in its currency.
            label: a name of your own for the rental, by which `rentals.get` and its like find it; several may share it.
            ttl: the longest duration of the rental, counted from the create. The container is deleted then, even if the
                block still runs.
            extendable_to: the longest duration that `extend` may give it. It stands in the container's name, from which
                `rentals.reap(by_name=True)` knows when it is over; by default twice the ttl, and at least an hour more.
            budget: the most that the rental may cost, in the currency of `payment_type`, machines that did not start
                included. The container is deleted once its listed price has used up the budget. A machine with a price of 0
                never uses it up.
            shared_budget: the name of a budget that several rentals share, of any process; `budgets.set` makes it. The price
                of the whole `ttl` is reserved before the create, and what it does not cost is free again once it is over.
            idle_timeout: how long the machine may be idle before it is deleted. The client reads that once a minute over
                SSH. A machine is busy with any command, job, copy, login or forward, of this program or another, and with
                5 % and more of GPU use by `nvidia-smi`. An unknown counts as busy, and is logged once.
            idle_when: a function that judges an `ActivityReading` instead, and returns True if the machine is idle. Only
                this process can call it, so that the rental cannot be detached.
            wait_for_stock: how long to wait for a machine if none is available; None to raise at once. The rentals of a
                client that wait share one list of the machines every few seconds. `timeout` does not count the wait.
            keep: True if the SDK must not delete the container once the block is entered; the caller has to delete it.
            fail: a condition that is met by a container that will not start any more, so that the wait for it ends early.
            start_timeout: the seconds in which each machine must accept the login.
            timeout: the seconds in which one of the machines must accept the login.
            notice: how long before the rental's end an event says that it expires, at once if less is left; None for never.
            on_event: a function that takes a `RentalEvent` for each step of the rental, which is logged at INFO, too. It
                runs in the client's event loop and has to return soon: meanwhile, the client does nothing, and deletes
                nothing. An awaitable that it returns is awaited there, in the order of the events; leaving the block waits
                up to 5 s for the last. An error is logged, and changes nothing.

        Raises:
            InvalidArgumentError: an argument cannot be used; on entering, no image or several images have the given name, or
                no GPU or several GPUs have the given part of a name.
            ConfigurationError: asyncssh is missing; on entering, this process cannot log in to containers.
            InsufficientBudgetError: on entering, the shared budget has no room for the next machine, which was not asked.
            NoMachineError: on entering, no machine is available, or three machines did not start; `refusals` says why.
            StateFileError: on entering, the state file cannot be used; nothing was rented, or the container was deleted.
            WaitTimeoutError: on entering, no machine accepted the login within `timeout`; the container was deleted.
            SSHError: on entering, the login failed for a reason that another machine would not cure; `stage` names it.
            RentalExpiredError, BudgetExceededError, RentalIdleError: on entering, using or leaving the rental, its container
                had been deleted, because its time was up, its budget spent, or it was idle for too long.
            ReleaseError: on leaving, the container could not be deleted, and stays on record.
            RentGPUError: on entering, any other of the client's errors.
        """
        from netmind_rentgpu.rentals.lifecycle.events import EventOptions
        from netmind_rentgpu.rentals.lifecycle.idleness import IdleOptions
        from netmind_rentgpu.rentals.lifecycle.starting import StartLimits
        from netmind_rentgpu.waiting.waits import checked_timeout

        request = self._renting.request(
            gpu_name=gpu_name,
            gpus=gpus,
            regions=regions,
            max_price=max_price,
            min_memory=min_memory,
            min_gpu_memory=min_gpu_memory,
            min_disk=min_disk,
            min_cuda=min_cuda,
            nvlink=nvlink,
            labels=labels,
            exclude=exclude,
            key=key,
            payment_type=payment_type,
        )
        stock = arguments.duration("wait_for_stock", wait_for_stock)
        limits = StartLimits(
            total=checked_timeout(timeout),
            each=checked_timeout(start_timeout, argument="start_timeout"),
            stock=0.0 if stock is None else stock.total_seconds(),
        )
        return self._renting.rent(
            request,
            image=image,
            auth=auth,
            label=label,
            ttl=ttl,
            extendable_to=extendable_to,
            budget=budget,
            shared_budget=shared_budget,
            idle=IdleOptions(timeout=idle_timeout, judge=idle_when),
            keep=keep,
            fail=fail,
            limits=limits,
            events=EventOptions(notice=notice, on_event=on_event),
        )

    def rent_many(
        self,
        count: int,
        *,
        at_least: int | None = None,
        replace: bool = False,
        ttl: timedelta = timedelta(hours=24),
        extendable_to: timedelta | None = None,
        budget: Decimal | float | None = None,
        timeout: float = 1800,
        **options: Unpack[RentOptions],
    ) -> AsyncFleet:
        """Return a fleet to enter: `async with gpu.rent_many(8) as fleet: ...`. Needs the extra `ssh`.

        Entering the block rents the machines at once, each as `rent` does, until all have started or failed, or `timeout`
        has passed. With fewer machines than `at_least`, all are given back. Leaving the block deletes all of them.

        Args:
            count: the number of machines.
            at_least: the number of machines with which the block can be entered; None for all of them.
            replace: True to rent another machine for each that is lost during `map`, while the time and the budget allow it.
            ttl: the longest duration of the fleet, counted from entering the block.
            extendable_to: the longest duration that stands in the containers' names; by default as for `rent`.
            budget: the most that all machines may cost together, in the currency of `payment_type`, those that did not start
                or were lost included. It is a shared budget of its own, in which each machine reserves its price for ten
                minutes, again and again while this process lives. Once it has no room, the machines end one after the other.
            timeout: the seconds in which the machines must accept the login.
            options: all other arguments of `rent` but `keep`, for each machine.

        Raises:
            InvalidArgumentError: an argument cannot be used.
            ConfigurationError: asyncssh is missing.
            NoMachineError: on entering, fewer machines than `at_least` have started; the message and the error's cause say
                why for each of the others.
            RentGPUError: on entering, an error that all machines would have, such as a token that is refused.
            ReleaseError: on leaving, a container could not be deleted, and stays on record.
        """
        from netmind_rentgpu.rentals.fleet import AsyncFleet
        from netmind_rentgpu.rentals.fleet_members import FleetMembers, FleetPlan

        if unknown := options.keys() - RentOptions.__annotations__:
            raise TypeError(f"rent_many() got an unexpected keyword argument {min(unknown)!r}")
        most = arguments.count("count", count)
        least = most if at_least is None else arguments.count("at_least", at_least, most)
        rentals = self._fleet_rentals(options, ttl=ttl, extendable_to=extendable_to, budget=budget, timeout=timeout)
        stock = options.get("wait_for_stock")
        plan = FleetPlan(
            count=most,
            at_least=least,
            replace=bool(replace),
            timeout=timeout + (stock.total_seconds() if stock else 0.0),
        )
        return AsyncFleet(FleetMembers(rentals, plan), most, self._renting.context.check_usable)

    def _fleet_rentals(
        self,
        options: RentOptions,
        *,
        ttl: timedelta,
        extendable_to: timedelta | None,
        budget: Decimal | float | None,
        timeout: float,
    ) -> FleetRentals:
        """Return the rentals of a fleet, of which none is begun yet; `rent_many` documents the arguments.

        Raises:
            InvalidArgumentError: an argument cannot be used.
            ConfigurationError: asyncssh is missing.
        """
        from netmind_rentgpu.rentals.fleet_budget import FleetBudget
        from netmind_rentgpu.rentals.fleet_rentals import FleetRentals
        from netmind_rentgpu.rentals.ledger.deadlines import ceiling_after

        # Read once, because each machine needs them.
        for name in ("gpu_name", "regions", "labels", "exclude"):
            if isinstance(value := options.get(name), Iterable) and not isinstance(value, str):
                options[name] = tuple(cast("Iterable[str]", value))
        # A rental that is never entered, to check all arguments.
        self.rent(ttl=ttl, extendable_to=extendable_to, budget=budget, timeout=timeout, **options)
        if budget is not None and options.get("shared_budget") is not None:
            raise InvalidArgumentError(
                "shared_budget",
                "does not go with budget=, which is a shared budget of the fleet's own; give one of them",
            )
        money = None
        if budget is not None:
            currency = self._renting.currency(options.get("payment_type", PaymentType.USD)) or ""
            money = FleetBudget(self._renting.context, arguments.bound("budget", budget), currency)

        def rent(terms: RentalTerms) -> AsyncRental:
            changed: RentOptions = options.copy()
            if terms.lease is not None:
                notice = options.get("notice", _NOTICE)
                # Otherwise an event would say before each extension of a lease that the machine expires.
                changed["notice"] = None if notice is None else min(notice, terms.lease / 2)
                changed["shared_budget"] = terms.shared_budget
            return self.rent(ttl=terms.ttl, extendable_to=terms.extendable_to, timeout=timeout, **changed)

        ceiling = ceiling_after(ttl) if extendable_to is None else extendable_to
        return FleetRentals(self._renting.context, rent, ttl=ttl, ceiling=ceiling, budget=money)

    async def offers(
        self,
        *,
        gpu_name: GPUName | Iterable[GPUName] | None = None,
        gpus: int = 1,
        regions: RegionCode | Iterable[RegionCode] | None = None,
        max_price: Decimal | float | None = None,
        min_memory: float | None = None,
        min_gpu_memory: float | None = None,
        min_disk: float | None = None,
        min_cuda: str | None = None,
        nvlink: bool | None = None,
        labels: Iterable[str] = (),
        exclude: Iterable[str] = (),
        key: OfferKey | None = None,
        payment_type: PaymentType | str | int = PaymentType.USD,
    ) -> list[Offer]:
        """Return the offers that `rent` would try, the best first, without renting. The arguments are those of `rent`.

        A machine that recently failed to start an image keeps its rank here, because these offers are for no certain image.

        Raises:
            InvalidArgumentError: an argument cannot be used, or no GPU or several GPUs have the given part of a name.
            RentGPUError: any of the client's errors.
        """
        request = self._renting.request(
            gpu_name=gpu_name,
            gpus=gpus,
            regions=regions,
            max_price=max_price,
            min_memory=min_memory,
            min_gpu_memory=min_gpu_memory,
            min_disk=min_disk,
            min_cuda=min_cuda,
            nvlink=nvlink,
            labels=labels,
            exclude=exclude,
            key=key,
            payment_type=payment_type,
        )
        return await self._renting.offers(request)
