"""`rentgpu images`: the images that containers start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from netmind_rentgpu.cli.columns import IMAGE, IMAGES
from netmind_rentgpu.cli.completions import files
from netmind_rentgpu.cli.options import Command, Group, completed_by
from netmind_rentgpu.cli.session import Session

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.models import Image

__all__ = ["command"]

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group("images", cls=Group)
def command() -> None:
    """List, show and create images that containers start from.

    The service deletes no image, so use one for many containers.
    """


@command.command("list", cls=Command, reads_only=True)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="NAME",
    help="official, public or custom, or the service's number; official by default. May be repeated.",
)
def list_images(session: Session, *, types: tuple[str, ...]) -> None:
    """List the images of a type, or of several."""
    wanted = [int(name) if name.isdecimal() else name for name in types] or ["OFFICIAL"]

    async def work(gpu: AsyncRentGPU) -> list[Image]:
        return [image async for image in gpu.images.list(image_type=wanted)]

    session.results.rows([image.to_dict() for image in session.run(work)], IMAGES)


@command.command("show", cls=Command, reads_only=True)
@click.argument("image_id", type=int, metavar="ID")
def show_image(session: Session, *, image_id: int) -> None:
    """Show one image, without its secrets."""
    image = session.run(lambda gpu: gpu.images.get(image_id))
    session.results.value(image.to_dict(), IMAGE)


def _with_content(function: Function) -> Function:
    """Return a function with the options of an image's content."""
    options = (
        click.option("--name", required=True, help="The name in the list of images."),
        click.option(
            "--image-name", required=True, metavar="REPOSITORY", help="The repository, such as pytorch/pytorch."
        ),
        click.option("--image-tag", required=True, metavar="TAG", help="The tag, such as 2.4.0 or latest."),
        click.option("--image-label", required=True, metavar="LABEL", help="The label, such as pytorch or tensorflow."),
        click.option("--description", metavar="TEXT", help="A text for people."),
        click.option("--docker-username", metavar="NAME", help="The login of a private registry."),
        click.option(
            "--docker-password-file",
            metavar="FILE",
            shell_complete=completed_by(files),
            help="A file with its password; - for stdin. By default, it is asked for.",
        ),
        click.option("--docker-registry", metavar="URL", help="The registry; Docker Hub by default."),
        click.option("--public-port", metavar="PORT", help="A port to expose."),
        click.option("--onstart", metavar="COMMAND", help="A command to run when a container starts."),
        click.option("--options", metavar="TEXT", help="Options of the container: --add-host, -e, -h and -w."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command("ensure", cls=Command)
@_with_content
def ensure_image(session: Session, **content: Any) -> None:
    """Find a custom image with exactly this content, or create it."""
    _store(session, content, "ensure")


@command.command("create", cls=Command)
@_with_content
def create_image(session: Session, **content: Any) -> None:
    """Create a custom image. `ensure` creates none twice."""
    _store(session, content, "create")


def _store(session: Session, content: dict[str, Any], method: Literal["ensure", "create"]) -> None:
    from netmind_rentgpu.cli.secret_input import read_secret

    path = content.pop("docker_password_file")

    async def work(gpu: AsyncRentGPU) -> Image:
        if path is not None or content["docker_username"] is not None:
            content["docker_passwd"] = read_secret(
                session, path, kind="password", option="--docker-password-file", question="Password of the registry"
            )
        return await (gpu.images.ensure(**content) if method == "ensure" else gpu.images.create(**content))

    session.results.value(session.run(work).to_dict(), IMAGE)
