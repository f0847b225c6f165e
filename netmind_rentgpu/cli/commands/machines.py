"""`rentgpu machines`: the machines on offer, as the service lists them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click

from netmind_rentgpu.cli.columns import MACHINES
from netmind_rentgpu.cli.options import AMOUNT, Command, Group
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.group("machines", cls=Group)
def command() -> None:
    """List the machines on offer.

    `rentgpu offers` ranks those that `rent` would try, by more needs.
    """


@command.command("list", cls=Command, reads_only=True)
@click.option("--gpu", multiple=True, metavar="NAME", help="A GPU, such as 4090 or 'RTX 4090'. May be repeated.")
@click.option("--gpus", type=int, metavar="N", help="The least number of GPUs.")
@click.option("--region", multiple=True, metavar="CODE", help="A region, as two letters. May be repeated.")
@click.option("--currency", metavar="NAME", help="The currency of the prices, USD by default.")
@click.option("--min-price", type=AMOUNT, help="The lowest price, of a GPU and an hour.")
@click.option("--max-price", type=AMOUNT, help="The highest price, likewise.")
@click.option("--min-memory", type=int, metavar="N", help="The least memory, in the service's unit.")
@click.option("--max-memory", type=int, metavar="N", help="The most memory, likewise.")
@click.option("--min-disk", type=int, metavar="N", help="The least disk, likewise.")
@click.option("--max-disk", type=int, metavar="N", help="The most disk, likewise.")
def list_machines(
    session: Session,
    *,
    gpu: tuple[str, ...],
    gpus: int | None,
    region: tuple[str, ...],
    min_price: Decimal | None,
    max_price: Decimal | None,
    **filters: Any,
) -> None:
    """List the machines on offer, in the service's order."""
    machines = session.run(
        lambda gpu_client: gpu_client.machines.list(
            gpu_names=gpu or None, gpu=gpus, region=region or None, min_price=min_price, max_price=max_price, **filters
        )
    )
    session.results.rows([machine.to_dict() for machine in machines], MACHINES)
