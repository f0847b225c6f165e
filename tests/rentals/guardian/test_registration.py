"""The registration of a client gives its guardian all that the client itself knows."""

from __future__ import annotations

import json
import ssl
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import trustme

from netmind_rentgpu import Retries, ServiceProfile, Timeouts
from netmind_rentgpu.rentals.guardian.registration import key_of, read_registration, registration_of
from netmind_rentgpu.settings import ClientParts, Settings

SETTINGS = Settings(
    token="a token",
    base_url="https://example.com",
    proxy="http://user:secret@localhost:1",
    timeouts=Timeouts(total=None, connect=3),
    retries=Retries(max_attempts=2),
    max_connections=7,
    state=Path("/somewhere/state.sqlite3"),
    keep_history=timedelta(days=3),
)
PROFILE = ServiceProfile(
    list_lag=timedelta(seconds=0.25), container_statuses={"RUNNING": 1}, deleted_stay_listed=True, authorization="bare"
)


def sent(parts: ClientParts) -> ClientParts:
    """Return parts as they are after their way to the guardian."""
    return read_registration(json.loads(json.dumps(registration_of(parts))))


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, attrs.evolve(SETTINGS, keep_history=None, proxy=None, timeouts=Timeouts(), retries=Retries())],
)
@pytest.mark.parametrize("profile", [ServiceProfile(), PROFILE])
def test_guardian_has_the_settings_and_the_profile_of_the_client(settings: Settings, profile: ServiceProfile) -> None:
    assert sent(ClientParts(settings, profile, None)) == ClientParts(settings, profile, None)


def test_every_setting_is_sent_but_those_of_the_process() -> None:
    others = {"handle_signals", "guardian"}
    fields = {field.name for field in attrs.fields(Settings)}
    assert registration_of(ClientParts(SETTINGS, PROFILE, None)).keys() == fields - others | {"profile", "tls"}


def test_tls_settings_are_sent() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    found = sent(ClientParts(SETTINGS, PROFILE, context)).ssl_context
    assert found is not None
    assert sorted(found.get_ca_certs(binary_form=True)) == sorted(set(context.get_ca_certs(binary_form=True)))
    for name in ("verify_mode", "check_hostname", "verify_flags", "minimum_version", "maximum_version", "options"):
        assert getattr(found, name) == getattr(context, name), name


def test_context_that_verifies_nothing_stays_so() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    found = sent(ClientParts(SETTINGS, PROFILE, context)).ssl_context
    assert found is not None
    assert (found.verify_mode, found.check_hostname) == (ssl.CERT_NONE, False)


def test_key_tells_state_files_and_tokens_apart_and_shows_no_token() -> None:
    keys = {
        key_of(SETTINGS),
        key_of(attrs.evolve(SETTINGS, token="another")),
        key_of(attrs.evolve(SETTINGS, state=Path("/elsewhere"))),
        key_of(attrs.evolve(SETTINGS, base_url="https://example.org")),
    }
    assert len(keys) == 4
    assert key_of(attrs.evolve(SETTINGS, proxy=None, max_connections=1)) in keys
    assert not any("a token" in key or "another" in key for key in keys)
