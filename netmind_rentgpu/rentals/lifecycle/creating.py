"""The create of an intent's container, which is not sent for an intent that has become too old."""

from __future__ import annotations

from datetime import timedelta

from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.container_index import check_create_answer
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionSpec
from netmind_rentgpu.requests import NewContainer

__all__ = ["StaleIntentError", "create_container"]


class StaleIntentError(RentGPUError):
    """A create was not sent, because its record had become too old."""


async def create_container(context: RentalContext, spec: ProvisionSpec, intent: RentalRecord) -> Container:
    """Create the container of an intent.

    This process may have been stopped since the intent was recorded, or the machine may have slept. The container of an
    intent that is too old could turn up when other processes are certain that none can.

    Raises:
        StaleIntentError: the intent was too old when the create was about to be sent.
        UnexpectedResponseError: the answer shows another container, so the result of the create is unknown.
        RentGPUError: any other of the client's errors.
    """

    def check_age() -> None:
        age = intent.present(context.clock()) - intent.intended_at
        if age > timedelta(seconds=context.limits.write):
            text = f"the create of {intent.name} was not sent: its record was {age.total_seconds():.0f} s old by then"
            raise StaleIntentError(text)

    new = NewContainer(
        name=intent.name,
        auth_id=spec.auth_id,
        node_name=intent.node_name,
        image_template_id=spec.image_id,
        payment_type=spec.payment_type,
        gpu=intent.gpus,
    )
    create = context.containers._create  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # with a check
    container = await create(new, check=check_age)
    check_create_answer(intent, container)
    return container
