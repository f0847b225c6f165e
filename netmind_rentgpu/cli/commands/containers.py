"""`rentgpu containers`: the containers of the account, whether a rental has them or not."""

from __future__ import annotations

from typing import Any

import click

from netmind_rentgpu.cli.completions import containers, files
from netmind_rentgpu.cli.options import WAIT_CONDITION, Command, Group, completed_by
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.values import WaitCondition

__all__ = ["command"]

_ID = click.argument("container_id", type=int, metavar="ID", shell_complete=completed_by(containers))
_IDS = click.argument(
    "ids", nargs=-1, type=int, required=True, metavar="ID...", shell_complete=completed_by(containers)
)


@click.group("containers", cls=Group)
def command() -> None:
    """List, create, wait for, stop and delete containers.

    ID is the service's number of a container. `rentgpu rentals` looks after what `rent` has created.
    """


@command.command("list", cls=Command, reads_only=True)
def list_containers(session: Session) -> None:
    """List the account's containers."""
    from netmind_rentgpu.cli.containers import print_containers

    print_containers(session)


@command.command("get", cls=Command, reads_only=True)
@_ID
def get_container(session: Session, *, container_id: int) -> None:
    """Show one container."""
    from netmind_rentgpu.cli.containers import print_container

    print_container(session, container_id)


@command.command("create", cls=Command)
@click.option("--name", required=True, help="A unique name, by which it is found if the answer is lost.")
@click.option("--auth", "auth_id", type=int, required=True, metavar="ID", help="The password, of `rentgpu auths`.")
@click.option(
    "--machine", "node_name", required=True, metavar="NAME", help="The machine, as in `rentgpu machines list`."
)
@click.option(
    "--image", "image_template_id", type=int, required=True, metavar="ID", help="The image, of `rentgpu images`."
)
@click.option("--gpus", "gpu", type=int, default=1, show_default=True, metavar="N", help="The number of GPUs.")
@click.option(
    "--balance", "payment_type", default="usd", show_default=True, metavar="CURRENCY", help="The balance to charge."
)
def create_container(session: Session, **wanted: Any) -> int:
    """Create a container, which costs money until it is deleted.

    No record and no deadline ends it. `rentgpu rent` gives its machine back in any case.
    """
    from netmind_rentgpu.cli.containers import create

    return create(session, wanted)


@command.command("stop", cls=Command)
@_IDS
def stop_containers(session: Session, *, ids: tuple[int, ...]) -> int:
    """Stop containers. It asks; they may cost money all the same."""
    from netmind_rentgpu.cli.containers import stop

    return stop(session, ids)


@command.command("restart", cls=Command)
@_IDS
def restart_containers(session: Session, *, ids: tuple[int, ...]) -> int:
    """Restart containers. It asks, because that ends all that runs there."""
    from netmind_rentgpu.cli.containers import restart

    return restart(session, ids)


@command.command("delete", cls=Command)
@_IDS
def delete_containers(session: Session, *, ids: tuple[int, ...]) -> int:
    """Delete containers. It asks; what is gone already is no error."""
    from netmind_rentgpu.cli.containers import delete

    return delete(session, ids)


@command.command("wait", cls=Command, reads_only=True)
@_IDS
@click.option(
    "--until",
    type=WAIT_CONDITION,
    default="ready",
    show_default=True,
    help="ready (a login works), reachable (an SSH server answers), has-ssh (an address is shown), gone, or"
    " status=VALUE.",
)
def wait_for_containers(session: Session, *, ids: tuple[int, ...], until: WaitCondition) -> int:
    """Wait until each container meets a condition.

    --timeout, 10m by default, ends the wait with 124.
    """
    from netmind_rentgpu.cli.containers import wait

    return wait(session, ids, until)


@command.command("watch", cls=Command, reads_only=True)
@click.argument("ids", nargs=-1, type=int, metavar="[ID...]", shell_complete=completed_by(containers))
def watch_containers(session: Session, *, ids: tuple[int, ...]) -> None:
    """Show containers, until Ctrl-C or until all of these are gone.

    On a terminal, it is a table that is redrawn; else, each container that is new, has changed or is gone is a line of JSON.
    """
    from netmind_rentgpu.cli.container_watch import watch

    watch(session, ids)


@command.command("ssh-config", cls=Command, reads_only=True)
@_IDS
@click.option(
    "--password-file",
    metavar="FILE",
    shell_complete=completed_by(files),
    help="A file with the password of the login; - for stdin. By default, the service is asked.",
)
def print_ssh_config(session: Session, *, ids: tuple[int, ...], password_file: str | None) -> None:
    """Print the configuration by which OpenSSH finds containers.

    It goes into ~/.ssh/config, or into a file for `ssh -F FILE container-ID`. OpenSSH accepts only the host key that this
    program has seen; it logs in once if it has seen none.
    """
    from netmind_rentgpu.cli.ssh_config import print_config

    print_config(session, ids, password_file)
