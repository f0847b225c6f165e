"""The registration of a client with its guardian: plain values for the socket between the two processes.

It holds the client's token, so it goes over that socket only, and is never part of a command line or an environment.
"""

from __future__ import annotations

import ssl
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import attrs

from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.settings import ClientParts, Retries, Settings, Timeouts

__all__ = ["key_of", "read_registration", "registration_of"]


def key_of(settings: Settings) -> str:
    """Return the key under which the guardian knows all clients with the same state file and token."""
    return f"{settings.state} {settings.fingerprint}"


def registration_of(parts: ClientParts) -> dict[str, Any]:
    """Return the plain values of a client's parts."""
    settings = parts.settings
    keep = settings.keep_history
    return {
        "token": settings.token,
        "base_url": settings.base_url,
        "proxy": settings.proxy,
        "timeouts": attrs.asdict(settings.timeouts),
        "retries": attrs.asdict(settings.retries),
        "max_connections": settings.max_connections,
        "state": str(settings.state),
        "keep_history": None if keep is None else keep.total_seconds(),
        "profile": {field.name: _plain(getattr(parts.profile, field.name)) for field in attrs.fields(ServiceProfile)},
        "tls": None if parts.ssl_context is None else _plain_tls(parts.ssl_context),
    }


def read_registration(values: Mapping[str, Any]) -> ClientParts:
    """Return the parts of a client from their plain values."""
    keep = values["keep_history"]
    settings = Settings(
        token=values["token"],
        base_url=values["base_url"],
        proxy=values["proxy"],
        timeouts=Timeouts(**values["timeouts"]),
        retries=Retries(**values["retries"]),
        max_connections=values["max_connections"],
        state=Path(values["state"]),
        keep_history=None if keep is None else timedelta(seconds=keep),
    )
    tls = values["tls"]
    return ClientParts(settings, ServiceProfile(**values["profile"]), None if tls is None else _read_tls(tls))


def _plain(value: object) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return dict(cast("Mapping[str, int]", value)) if isinstance(value, Mapping) else value


def _plain_tls(context: ssl.SSLContext) -> dict[str, Any]:
    """Return what can be read of a context: its certificates of authorities, but not a certificate of the client's own."""
    return {
        "authorities": [b64encode(certificate).decode() for certificate in context.get_ca_certs(binary_form=True)],
        "verify_mode": int(context.verify_mode),
        "check_hostname": context.check_hostname,
        "verify_flags": int(context.verify_flags),
        "minimum_version": int(context.minimum_version),
        "maximum_version": int(context.maximum_version),
        "options": int(context.options),
    }


def _read_tls(values: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Before the mode, because only a context that does not check the host name may skip the verification.
    context.check_hostname = False
    context.verify_mode = ssl.VerifyMode(values["verify_mode"])
    context.check_hostname = values["check_hostname"]
    context.verify_flags = ssl.VerifyFlags(values["verify_flags"])
    context.options = ssl.Options(values["options"])
    context.minimum_version = ssl.TLSVersion(values["minimum_version"])
    context.maximum_version = ssl.TLSVersion(values["maximum_version"])
    if values["authorities"]:
        context.load_verify_locations(cadata=b"".join(map(b64decode, values["authorities"])))
    return context
