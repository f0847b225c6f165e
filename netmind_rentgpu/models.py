"""What the service speaks of, as plain frozen values: no I/O, no JSON.

Fields have the wire's names. `id` (a machine's `node_name`) is always there, since a thing without one can be neither named
nor deleted; anything else may be None: the service may send null, leave a field out, or send what cannot be read. Such a
raw value, and every field that is not documented, is in `extra`. A container without a readable name is still a container
that costs money, so `name` does not stand in the way of seeing it.

Secrets (`Auth.value`, `Image.docker_passwd`) are in no repr, and are left out when a model is pickled.

Source of the fields: `netmind_rentgpu/guide/wire-contract.md`, "Documented".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import attrs

__all__ = ["Auth", "Container", "Image", "ImageType", "InvalidField", "Machine", "PaymentType", "SSHEndpoint"]


@attrs.frozen(repr=False)
class _OpenEnumeration:
    """A named value, or a raw one that no name is known for.

    The numbers on the wire belong to the service profile, so a member holds its name, and an unknown number stays as it
    came.
    """

    value: str | int
    _members: ClassVar[frozenset[str]] = frozenset()

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}.{self.value}" if self.value in self._members else f"{name}({self.value!r})"


class ImageType(_OpenEnumeration):
    """Who an image comes from."""

    __slots__ = ()
    OFFICIAL: ClassVar[ImageType]
    PUBLIC: ClassVar[ImageType]
    CUSTOM: ClassVar[ImageType]
    _members: ClassVar[frozenset[str]] = frozenset({"OFFICIAL", "PUBLIC", "CUSTOM"})


ImageType.OFFICIAL = ImageType("OFFICIAL")
ImageType.PUBLIC = ImageType("PUBLIC")
ImageType.CUSTOM = ImageType("CUSTOM")


class PaymentType(_OpenEnumeration):
    """Which of the account's balances a container is charged to."""

    __slots__ = ()
    USD: ClassVar[PaymentType]
    NMT: ClassVar[PaymentType]
    CNY: ClassVar[PaymentType]
    _members: ClassVar[frozenset[str]] = frozenset({"USD", "NMT", "CNY"})


PaymentType.USD = PaymentType("USD")
PaymentType.NMT = PaymentType("NMT")
PaymentType.CNY = PaymentType("CNY")


@attrs.frozen(kw_only=True)
class _Model:
    """What all models share: the rest of the payload, and that secrets stay out of pickles."""

    extra: Mapping[str, Any] = attrs.field(factory=dict[str, Any], repr=False, hash=False)
    _secrets: ClassVar[frozenset[str]] = frozenset()

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the fields as plain values, as for a row of a DataFrame; `extra` is left out where it is empty.

        Args:
            secrets: True to show what is in no repr: passwords, and an image's `onstart` and `options`; else it is `***`.
            json: True for what JSON can hold: prices as texts, and times, too, in ISO 8601.
        """
        from netmind_rentgpu.conversion import to_plain

        hidden = [field.name for field in attrs.fields(type(self)) if not field.repr and field.name != "extra"]
        return to_plain(self, masked=() if secrets else hidden, json=json)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the model that a mapping stands for: what `to_dict` returned, or a part of it.

        As from the service, what cannot be read becomes None and is kept in `extra`. A value that `to_dict` has masked stays
        `***`.

        Raises:
            InvalidArgumentError: the field that names the thing is missing or cannot be read.
        """
        from netmind_rentgpu.conversion import from_plain

        found: Self = from_plain(cls, values)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if field.name not in self._secrets
        }
        fields["extra"] = {name: value for name, value in self.extra.items() if name not in self._secrets}
        return _restore, (type(self), fields)

    def __copy__(self) -> _Model:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Model:
        # A frozen value is its own copy; going through a pickle's form would lose the secrets.
        return self


def _restore(model: type[_Model], fields: dict[str, Any]) -> _Model:
    return model(**fields)


@attrs.frozen(kw_only=True)
class Machine(_Model):
    """A machine that can be rented from, and what it costs.

    The service documents no units. `price` is, unless the profile says otherwise, for one hour and one GPU.
    """

    node_name: str
    gpu_name: str | None = None
    gpu_count: float | None = None
    gpu_memory: float | None = None
    price: Decimal | None = None
    original_price: Decimal | None = None
    region: str | None = None
    on_demand: str | None = None
    labels: tuple[str, ...] | None = None
    cluster: str | None = None
    cpu_name: str | None = None
    cpu_count: float | None = None
    cpu_per_gpu: float | None = None
    memory_per_gpu: float | None = None
    memory_total: float | None = None
    disk_per_gpu: float | None = None
    disk_total: float | None = None
    network_upload_speed: float | None = None
    network_download_speed: float | None = None
    up_time: float | None = None
    online_rate: float | None = None
    gpu_id: int | str | None = None
    organization: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    nvlink_status: bool | None = None


@attrs.frozen(kw_only=True)
class Auth(_Model):
    """A password that containers can be created with: their SSH login's.

    Attributes:
        value: the password. Left out of repr and pickles.
        created_at: always with a time zone; one that came without is read as UTC.
    """

    _secrets: ClassVar[frozenset[str]] = frozenset({"value"})

    id: int
    value: str | None = attrs.field(default=None, repr=False)
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class Image(_Model):
    """What a container is started from: an "environment template" in the service's words.

    Attributes:
        docker_passwd: the private registry's password. Left out of repr and pickles.
        onstart, options: may hold secrets of the user's own, and are left out of repr.
        created_at: always with a time zone; one that came without is read as UTC.
    """

    _secrets: ClassVar[frozenset[str]] = frozenset({"docker_passwd"})

    id: int
    name: str | None = None
    image_name: str | None = None
    image_tag: str | None = None
    image_label: str | None = None
    image_type: ImageType | None = None
    description: str | None = None
    docker_username: str | None = None
    docker_passwd: str | None = attrs.field(default=None, repr=False)
    docker_registry: str | None = None
    public_port: str | None = None
    onstart: str | None = attrs.field(default=None, repr=False)
    options: str | None = attrs.field(default=None, repr=False)
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class Container(_Model):
    """A rented environment. It costs money until it is deleted.

    Attributes:
        status: the service's own number, whose meaning is not documented. Do not decide by it: `ssh_endpoint` is evidence.
        status_name: the name that the profile gives that number; not on the wire.
        ssh: how to log in, in whatever form the service writes it; `ssh_endpoint` reads it.
        gpu: how many GPUs. `gpu_name` is a number in the vendor's sample.
        created_at: always with a time zone; one that came without is read as UTC.
    """

    id: int
    name: str | None = None
    status: int | str | None = None
    status_name: str | None = None
    ssh: str | None = None
    gpu: int | None = None
    gpu_name: str | int | None = None
    node_name: str | None = None
    auth_id: int | None = None
    image_template_id: int | None = None
    enable_vscode: bool | None = None
    enable_jupyter: bool | None = None
    cpu: float | None = None
    memory: float | None = None
    disk_size: float | None = None
    exposed_service: str | None = None
    vscode_service: str | None = None
    jupyter_service: str | None = None
    created_at: datetime | None = None

    @property
    def ssh_endpoint(self) -> SSHEndpoint | None:
        """Where an SSH server should answer, or None while `ssh` names no endpoint that can be read."""
        return None if self.ssh is None else SSHEndpoint.parse(self.ssh)


_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_FLAGS = re.compile(r"-[46AaCfGgKkNnqsTtVvXxYy]+")
_USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


@attrs.frozen
class SSHEndpoint:
    """Where to log in.

    Attributes:
        host: a host name or an IP address (IPv6 without brackets).
        port: 1 to 65535.
        username: None where the service names none.
    """

    host: str
    port: int = 22
    username: str | None = None

    @classmethod
    def parse(cls, text: str) -> SSHEndpoint | None:
        """Read an endpoint from any form the `ssh` field is thought to take; None where there is none to be read.

        Read are `ssh root@host -p 30022` with -p, -l, -o, -i and flags in any place, `host:port`, `user@host:port`, and a
        URL. A command with any other option is not, nor a host or user that a command line could take for an option.
        """
        words = text.split()
        if not words:
            return None
        if words[0] == "ssh":
            return _from_command(words[1:])
        if len(words) > 1:
            return None
        if "://" in text:
            return _from_address(text.strip())
        # Without a port or a user it could be any word, "pending" for one.
        return _from_address(f"ssh://{words[0]}") if ":" in words[0] or "@" in words[0] else None


def _from_command(words: list[str]) -> SSHEndpoint | None:
    destination: str | None = None
    options: dict[str, str] = {}
    remaining = iter(words)
    for word in remaining:
        if word[:2] in ("-p", "-l"):
            options[word[:2]] = word[2:] or next(remaining, "")
        elif word[:2] in ("-o", "-i"):
            _ = word[2:] or next(remaining, "")
        elif word.startswith("-"):
            # An option that may take the next word, or lead by way of another host, leaves the destination in doubt.
            if not _FLAGS.fullmatch(word):
                return None
        elif destination is None:
            destination = word
    if destination is None:
        return None
    address = destination if "://" in destination else f"ssh://{destination}"
    endpoint = _from_address(address)
    if endpoint is None:
        return None
    return _checked(endpoint.host, options.get("-p", str(endpoint.port)), options.get("-l", endpoint.username))


def _from_address(address: str) -> SSHEndpoint | None:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme != "ssh":
        return None
    return _checked(parts.hostname or "", str(22 if port is None else port), parts.username)


def _checked(host: str, port: str, username: str | None) -> SSHEndpoint | None:
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        return None
    if username is not None and not _USER_NAME.fullmatch(username):
        return None
    if not _HOST_NAME.fullmatch(host) or host.replace(".", "").isdigit():
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return None
    return SSHEndpoint(host, int(port), username)


@attrs.frozen
class InvalidField:
    """One field that the service rejected; the names are the wire's.

    Attributes:
        loc: where it stands, as ("body", "name").
        msg: what is wrong with it.
        type: the service's own word for that.
    """

    loc: tuple[str | int, ...]
    msg: str
    type: str
