"""The service's machines, auths, images and containers as plain frozen values: no I/O, no JSON.

Fields have the wire's names. Each model has an `id` (a machine: a `node_name`), because a resource without it can be neither
named nor deleted. Any other field may be None: the service may send null, leave the field out, or send a value that cannot
be read. `extra` keeps values that cannot be read and fields that are not documented. Even a container's `name` may be None,
because a container whose name cannot be read still costs money, and has to be seen.

No repr shows secrets (`Auth.value`, `Image.docker_passwd`), and pickled models leave them out.

Source of the fields: `netmind_rentgpu/guide/explanation/wire-contract.md`, "Documented".
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
    """A member of an enumeration by its name, or a raw value without a known name.

    The service profile knows the members' numbers on the wire, so a member holds only its name. An unknown number stays as
    it came.
    """

    value: str | int
    _members: ClassVar[frozenset[str]] = frozenset()

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}.{self.value}" if self.value in self._members else f"{name}({self.value!r})"


class ImageType(_OpenEnumeration):
    """The origin of an image.

    Attributes:
        value: the name, or the service's own number if the profile has no name for it.
    """

    __slots__ = ()
    OFFICIAL: ClassVar[ImageType]
    PUBLIC: ClassVar[ImageType]
    CUSTOM: ClassVar[ImageType]
    _members: ClassVar[frozenset[str]] = frozenset({"OFFICIAL", "PUBLIC", "CUSTOM"})


ImageType.OFFICIAL = ImageType("OFFICIAL")
ImageType.PUBLIC = ImageType("PUBLIC")
ImageType.CUSTOM = ImageType("CUSTOM")


class PaymentType(_OpenEnumeration):
    """The balance of the account that a container is charged to.

    Attributes:
        value: the name, or the service's own number if the profile has no name for it.
    """

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
    """The base of all models: it keeps the rest of the payload, and leaves secrets out of pickles."""

    extra: Mapping[str, Any] = attrs.field(factory=dict[str, Any], repr=False, hash=False)
    _secrets: ClassVar[frozenset[str]] = frozenset()

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the fields as plain values, as for a row of a DataFrame. An empty `extra` is left out.

        Args:
            secrets: True to include the values that no repr shows: passwords, and an image's `onstart` and `options`. False
                puts `***` in their place.
            json: True to return only what JSON can hold: prices become texts, and times become texts in ISO 8601.
        """
        from netmind_rentgpu.conversion import to_plain

        hidden = [field.name for field in attrs.fields(type(self)) if not field.repr and field.name != "extra"]
        return to_plain(self, masked=() if secrets else hidden, json=json)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a model from a mapping: from what `to_dict` returned, or from a part of that.

        As with the service's answers, a value that cannot be read becomes None and is kept in `extra`. A value that
        `to_dict` has masked stays `***`.

        Raises:
            InvalidArgumentError: the `id` (a machine: the `node_name`) is missing or cannot be read.
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
        # A frozen value is its own copy, and a copy by way of `__reduce__` would lose the secrets.
        return self


def _restore(model: type[_Model], fields: dict[str, Any]) -> _Model:
    return model(**fields)


@attrs.frozen(kw_only=True)
class Machine(_Model):
    """A machine on offer, and its price.

    The service documents no units, so none is given here. The names are its own.

    Attributes:
        node_name: the machine's name, by which a create asks for it.
        gpu_name, gpu_count: the model of its GPUs, and their number.
        gpu_memory: the memory of one GPU.
        price: the price of one GPU for an hour, unless the profile says otherwise; in the currency that was asked for.
        original_price: another price that the service lists; its meaning is not documented.
        region: a two-letter code.
        on_demand: a text that the service does not explain.
        labels: the service's labels, such as verified.
        cluster, organization: names of groups that the machine belongs to.
        cpu_name, cpu_count, cpu_per_gpu: the model of its processors, their number, and the number for each GPU.
        memory_per_gpu, memory_total: the main memory for each GPU, and of the whole machine.
        disk_per_gpu, disk_total: the disk space for each GPU, and of the whole machine.
        network_upload_speed, network_download_speed: the speeds that the service lists.
        up_time, online_rate: how long, and for what share of the time, the machine has been up.
        gpu_id: a number or a text that the service does not explain.
        driver_version, cuda_version: versions of the GPU's driver and of CUDA.
        nvlink_status: True if its GPUs are connected by NVLink.
    """

    node_name: str
    gpu_name: str | None = None
    gpu_count: int | None = None
    gpu_memory: float | None = None
    price: Decimal | None = None
    original_price: Decimal | None = None
    region: str | None = None
    on_demand: str | None = None
    labels: tuple[str, ...] | None = None
    cluster: str | None = None
    cpu_name: str | None = None
    cpu_count: int | None = None
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
    """A password for the SSH login of containers that are created with it.

    Attributes:
        id: the number by which `create` names this password.
        value: the password, 8 to 32 characters. Left out of repr and pickles.
        created_at: always with a time zone; a time that came without one is read as UTC.
    """

    _secrets: ClassVar[frozenset[str]] = frozenset({"value"})

    id: int
    value: str | None = attrs.field(default=None, repr=False)
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class Image(_Model):
    """An image that containers start from: an "environment template" in the service's words.

    Attributes:
        id: the number by which a create names this image.
        name, description: texts for people.
        image_name, image_tag: the repository and the tag in the registry.
        image_label: the kind of image, such as pytorch.
        image_type: official, public or custom.
        docker_registry, docker_username: the registry, and the user name there.
        docker_passwd: the private registry's password. Left out of repr and pickles.
        public_port: the port of the container that the service exposes.
        onstart: the command that runs when a container starts. May hold the user's own secrets; left out of repr.
        options: options of `docker run`. May hold the user's own secrets; left out of repr.
        created_at: always with a time zone; a time that came without one is read as UTC.
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
        id: the number by which all calls name the container.
        name: the name that its create gave, as far as the service keeps it.
        node_name: the machine that it runs on.
        auth_id, image_template_id: the ids of its password and its image.
        status: the service's own number, whose meaning is not documented. Decide by `ssh_endpoint`, which is evidence.
        status_name: the name that the profile gives to `status`; not on the wire.
        ssh: the address to log in to, in the service's own form, which is not documented; `ssh_endpoint` parses it.
        gpu: the number of GPUs.
        gpu_name: the name of the GPU; a number in the vendor's sample.
        enable_vscode, enable_jupyter: True if the service offers these tools for it.
        cpu, memory, disk_size: its share of the machine; the service documents no units.
        exposed_service: the address of the image's `public_port`, in a form that is not documented.
        vscode_service, jupyter_service: the addresses of these tools, in a form that is not documented.
        created_at: always with a time zone; a time that came without one is read as UTC.
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
        """The endpoint at which an SSH server should answer; None while `ssh` names no endpoint that can be read."""
        return None if self.ssh is None else SSHEndpoint.parse(self.ssh)


_HOST_NAME = re.compile(r"(?:(?!-)[A-Za-z0-9_-]{1,63}\.)*(?![0-9]+\.?\Z)(?!-)[A-Za-z0-9_-]{1,63}\.?")
_USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
# The options of the `ssh` command that are read or ignored. An option that is not here may lead to another server.
_SHORT_OPTIONS = "46AaCfGgKkNnqsTtVvXxYyE:i:l:o:p:"
_OPTION_LINE = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(\S.*)")
_WITHOUT_EFFECT = frozenset(
    {
        *(
            "checkhostip",
            "fingerprinthash",
            "globalknownhostsfile",
            "hashknownhosts",
            "hostkeyalgorithms",
            "hostkeyalias",
        ),
        *("nohostauthenticationforlocalhost", "stricthostkeychecking", "updatehostkeys", "userknownhostsfile"),
        *("verifyhostkeydns", "visualhostkey"),
        *("loglevel", "logverbose", "syslogfacility"),
        *("serveralivecountmax", "serveraliveinterval", "tcpkeepalive"),
        *("identitiesonly", "identityfile"),
    }
)


@attrs.frozen
class SSHEndpoint:
    """The address of a container's SSH server.

    Attributes:
        host: a host name or an IP address (IPv6 without brackets).
        port: 1 to 65535.
        username: the user to log in as; None if the service names none.
    """

    host: str
    port: int = 22
    username: str | None = None

    @classmethod
    def parse(cls, text: str) -> SSHEndpoint | None:
        """Parse an endpoint in any form that the `ssh` field may have; return None if the text names none for certain.

        The method accepts a URL, `user@host`, `host:port` with an address or a name that has a dot, and an `ssh` command of
        one line. Of several options -p, -l, or -o with Port, User or HostName, the first counts, as in OpenSSH. The method
        ignores flags, -i, -E, and -o with options about host keys, logs or keepalive. It returns None for a command with any
        other option, such as -J or -L, because that may lead to another server. The method executes nothing.
        """
        line = text.strip()
        if len(line.splitlines()) != 1:
            return None
        words = _shell_words(line)
        if words and words[0] == "ssh":
            return _from_command(words[1:])
        if len(words) != 1:
            return None
        if "://" in line or "@" in line:
            return _from_address(line)
        # The host must be qualified, because "error:404" and "T12:30" have the form of a host and a port, too.
        endpoint = _from_address(line) if ":" in line else None
        return endpoint if endpoint is not None and _is_qualified(endpoint.host) else None


def _shell_words(line: str) -> list[str]:
    if not {"'", '"', "\\"}.intersection(line):
        return line.split()
    from shlex import split

    try:
        return split(line)
    except ValueError:  # a quotation mark has no partner
        return []


def _is_qualified(host: str) -> bool:
    return host == "localhost" or "." in host or ":" in host


def _from_command(words: list[str]) -> SSHEndpoint | None:
    from getopt import GetoptError, getopt

    try:
        before, operands = getopt(words, _SHORT_OPTIONS)
        after, command = getopt(operands[1:], _SHORT_OPTIONS)
    except GetoptError:
        return None
    destination = _split_address(operands[0]) if operands else None
    if destination is None or command or "--" in words:
        return None
    host, port, username = destination
    named = {"-p": port, "-l": username}
    options = [*before, *((option, value) for option, value in named.items() if value is not None), *after]
    found: dict[str, str] = {}
    for option, value in options:
        name = {"-p": "port", "-l": "user"}.get(option)
        text = value
        if option == "-o":
            line = _OPTION_LINE.fullmatch(value)
            name, text = ("", "") if line is None else (line[1].lower(), line[2].strip().strip('"'))
            if name not in ("port", "user", "hostname", *_WITHOUT_EFFECT):
                return None
        if name is not None:
            found.setdefault(name, text)
    if _checked(host, "22", username) is None:
        return None
    return _checked(found.get("hostname", host), found.get("port", "22"), found.get("user"))


def _from_address(address: str) -> SSHEndpoint | None:
    parts = _split_address(address)
    return None if parts is None else _checked(parts[0], parts[1] or "22", parts[2])


def _split_address(address: str) -> tuple[str, str | None, str | None] | None:
    """Return the host, port and user name of a URL, or of `user@host:port`; None if the text holds anything else."""
    try:
        parts = urlsplit(address if "://" in address else f"ssh://{address}")
        port = parts.port
    except ValueError:
        return None
    if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.query or parts.fragment:
        return None
    return parts.hostname or "", None if port is None else str(port), parts.username


def _checked(host: str, port: str, username: str | None) -> SSHEndpoint | None:
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        return None
    if username is not None and not _USER_NAME.fullmatch(username):
        return None
    if not _HOST_NAME.fullmatch(host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return None
    return SSHEndpoint(host, int(port), username)


@attrs.frozen
class InvalidField:
    """One field that the service rejected. The attributes have the wire's names.

    Attributes:
        loc: the field's place in the request, such as ("body", "name").
        msg: the service's reason.
        type: the service's own word for the kind of mistake.
    """

    loc: tuple[str | int, ...]
    msg: str
    type: str
