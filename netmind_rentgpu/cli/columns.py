"""The columns of tables, and the rows of results that are made of several things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from netmind_rentgpu.amounts import in_own_context, rounded
from netmind_rentgpu.cli.cells import Column, Row
from netmind_rentgpu.cli.values import shown_money

if TYPE_CHECKING:
    from netmind_rentgpu.rentals.ledger.records import RentalRecord
    from netmind_rentgpu.rentals.selection.offers import Offer

__all__ = [
    "AUTHS",
    "BUDGETS",
    "CONTAINER",
    "CONTAINERS",
    "IMAGE",
    "IMAGES",
    "JOBS",
    "MACHINES",
    "OFFERS",
    "OFFERS_WITH_COST",
    "RENTAL",
    "RENTALS",
    "offer_rows_with_cost",
    "rental_row",
]


def _gpus(row: Row) -> str:
    return f"{row['gpus']} x {row.get('gpu_name') or '?'}"


def _hourly(row: Row) -> str:
    return shown_money(row.get("hourly_price"), row.get("currency"))


def _money(name: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        return "" if row.get(name) is None else shown_money(row[name], row.get("currency"))

    return show


def _counted_gpus(count: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        return f"{'?' if row.get(count) is None else row[count]} x {row.get('gpu_name') or '?'}"

    return show


def _status(row: Row) -> str:
    name = row.get("status") if row.get("status_name") is None else row["status_name"]
    return "" if name is None else str(name)


def _image(row: Row) -> str:
    return f"{row.get('image_name') or '?'}:{row.get('image_tag') or '?'}"


OFFERS: Final[Sequence[Column]] = (
    Column("node_name", "MACHINE"),
    Column("gpu_name", "GPUS", show=_gpus),
    Column("hourly_price", "PRICE/HOUR", is_number=True, show=_hourly),
    Column("gpu_memory", "GPU MEM", 3, is_number=True),
    Column("memory_total", "MEMORY", 5, is_number=True),
    Column("disk_total", "DISK", 6, is_number=True),
    Column("cuda_version", "CUDA", 4, is_number=True),
    Column("region", "REGION", 1),
    Column("nvlink_status", "NVLINK", 7),
)
OFFERS_WITH_COST: Final[Sequence[Column]] = (
    *OFFERS[:3],
    Column("max_cost", "AT MOST", is_number=True, show=_money("max_cost")),
    Column("expires_at", "UNTIL", 1),
    *OFFERS[3:],
)
RENTALS: Final[Sequence[Column]] = (
    Column("name", "NAME"),
    Column("label", "LABEL", 1),
    Column("stage", "STATE"),
    Column("gpu_name", "GPUS", 2, show=_gpus),
    Column("container_id", "CONTAINER", 5, is_number=True),
    Column("hourly_price", "PRICE/HOUR", 4, is_number=True, show=_hourly),
    Column("spent", "SPENT", is_number=True, show=_money("spent")),
    Column("max_cost", "AT MOST", 3, is_number=True, show=_money("max_cost")),
    Column("expires_at", "ENDS"),
    Column("enforced_by", "ENFORCED BY", 6),
)
RENTAL: Final[Sequence[Column]] = (
    *RENTALS[:4],
    Column("node_name", "MACHINE"),
    Column("region", "REGION"),
    Column("image", "IMAGE"),
    *RENTALS[4:8],
    Column("budget", "BUDGET", show=_money("budget")),
    Column("shared_budget", "SHARED BUDGET"),
    Column("intended_at", "SINCE"),
    Column("expires_at", "ENDS"),
    Column("extendable_to", "EXTENDABLE TO"),
    Column("enforced_by", "ENFORCED BY"),
    Column("release_job", "ENDS WITH JOB"),
    Column("idle_timeout", "ENDS IF IDLE FOR"),
)
BUDGETS: Final[Sequence[Column]] = (
    Column("name", "NAME"),
    Column("limit", "LIMIT", is_number=True, show=_money("limit")),
    Column("per", "PER"),
    Column("spent", "SPENT", is_number=True, show=_money("spent")),
    Column("reserved", "RESERVED", 1, is_number=True, show=_money("reserved")),
    Column("hourly", "HOURLY LIMIT", 2, is_number=True, show=_money("hourly")),
    Column("hourly_now", "HOURLY NOW", 3, is_number=True, show=_money("hourly_now")),
    Column("holders", "RENTALS", 4),
)
JOBS: Final[Sequence[Column]] = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("exit_status", "STATUS", is_number=True),
    Column("exit_signal", "SIGNAL", 2),
    Column("started_at", "STARTED", 1),
    Column("ended_at", "ENDED", 1),
    Column("stdout_size", "STDOUT", 4, is_number=True),
    Column("stderr_size", "STDERR", 5, is_number=True),
    Column("command", "COMMAND", 3),
)
MACHINES: Final[Sequence[Column]] = (
    Column("node_name", "MACHINE"),
    Column("gpu_name", "GPUS", show=_counted_gpus("gpu_count")),
    Column("price", "PRICE", is_number=True),
    *OFFERS[3:],
)
AUTHS: Final[Sequence[Column]] = (
    Column("id", "ID", is_number=True),
    Column("value", "PASSWORD"),
    Column("created_at", "CREATED", 1),
)
IMAGES: Final[Sequence[Column]] = (
    Column("id", "ID", is_number=True),
    Column("name", "NAME"),
    Column("image_name", "IMAGE", show=_image),
    Column("image_label", "LABEL", 1),
    Column("image_type", "TYPE", 2),
    Column("created_at", "CREATED", 3),
)
IMAGE: Final[Sequence[Column]] = (
    *IMAGES[:5],
    Column("description", "DESCRIPTION"),
    Column("docker_registry", "REGISTRY"),
    Column("docker_username", "USER"),
    Column("docker_passwd", "PASSWORD"),
    Column("public_port", "PORT"),
    Column("onstart", "ON START"),
    Column("options", "OPTIONS"),
    Column("created_at", "CREATED"),
)
CONTAINERS: Final[Sequence[Column]] = (
    Column("id", "ID", is_number=True),
    Column("name", "NAME"),
    Column("status", "STATUS", show=_status),
    Column("gpu", "GPUS", 3, show=_counted_gpus("gpu")),
    Column("node_name", "MACHINE", 1),
    Column("ssh", "SSH", 2),
    Column("created_at", "CREATED", 4),
)
CONTAINER: Final[Sequence[Column]] = (
    *CONTAINERS[:6],
    Column("auth_id", "AUTH"),
    Column("image_template_id", "IMAGE"),
    Column("cpu", "CPU"),
    Column("memory", "MEMORY"),
    Column("disk_size", "DISK"),
    Column("exposed_service", "EXPOSED SERVICE"),
    Column("vscode_service", "VS CODE"),
    Column("jupyter_service", "JUPYTER"),
    Column("created_at", "CREATED"),
)


@in_own_context
def offer_rows_with_cost(
    offers: Sequence[Offer], now: datetime, ttl: timedelta, budget: Decimal | None
) -> list[dict[str, Any]]:
    """Return the offers' fields, with the most that a rental of each would cost and its end.

    Args:
        now: the present time, from which the ttl counts.
        budget: the most that the rental may cost; None without a limit.
    """
    rows: list[dict[str, Any]] = []
    for offer in offers:
        length, price = ttl, offer.hourly_price
        if budget is not None and price and budget / price * 3600 < Decimal(str(ttl.total_seconds())):
            length = timedelta(seconds=float(budget / price * 3600))
        cost = None if price is None else rounded(price * Decimal(str(length.total_seconds())) / 3600)
        rows.append(offer.to_dict() | {"max_cost": cost, "expires_at": (now + length).astimezone(UTC)})
    return rows


@in_own_context
def rental_row(record: RentalRecord) -> dict[str, Any]:
    """Return the fields of a rental on record, and what it has cost so far."""
    cost = record.cost_until(datetime.now(UTC))
    spent: Decimal | None = None if cost is None else rounded(cost + record.spent_before)
    return record.to_dict() | {"spent": spent}
