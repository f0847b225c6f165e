"""`rentgpu offers`: what `rent` would try."""

from __future__ import annotations

from typing import Any

import click

from netmind_rentgpu.cli.columns import OFFERS
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.needs import offer_arguments, with_needs
from netmind_rentgpu.cli.options import Command
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("offers", cls=Command, reads_only=True, options_metavar="[NEEDS]")
@with_needs(renting=False)
def command(session: Session, **needs: Any) -> int:
    """List the machines that rent would try, the best first.

    It takes the options of `rent`, and rents nothing.
    """
    offers = session.run(lambda gpu: gpu.offers(**offer_arguments(needs)))
    session.results.rows([offer.to_dict() for offer in offers], OFFERS)
    return ExitCode.DONE
