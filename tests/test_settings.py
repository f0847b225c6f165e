"""The settings of a client: where they come from, and which are refused."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, InvalidArgumentError, Retries, Timeouts, arguments
from netmind_rentgpu.fingerprint import normalized_origin
from netmind_rentgpu.settings import DEFAULT, Settings, timeouts_for


def resolve(environment: dict[str, str] | None = None, **arguments: Any) -> Settings:
    defaults = {
        "token": "token",
        "base_url": None,
        "proxy": None,
        "timeout": DEFAULT,
        "retries": DEFAULT,
        "max_connections": 100,
        "allow_insecure_http": False,
    }
    return Settings.resolve(**{**defaults, **arguments}, environment=environment or {})


def test_token_comes_from_the_argument_or_the_environment() -> None:
    both = {"NETMIND_API_KEY": "key", "NETMIND_API_TOKEN": "other"}
    assert resolve(both).token == "token"
    assert resolve(both, token=None).token == "key"
    assert resolve({"NETMIND_API_TOKEN": "other"}, token=None).token == "other"
    assert resolve({"NETMIND_API_KEY": "", "NETMIND_API_TOKEN": "other"}, token=None).token == "other"
    assert resolve(token=" token\n").token == "token"


def test_empty_token_is_not_replaced_from_the_environment() -> None:
    with pytest.raises(ConfigurationError):
        resolve({"NETMIND_API_KEY": "key"}, token="")


@pytest.mark.parametrize("argument", ["token", "base_url", "proxy", "profile", "session"])
def test_client_argument_of_the_wrong_type_is_named(argument: str) -> None:
    arguments: dict[str, Any] = {"token": "t", argument: 5}
    with pytest.raises(ConfigurationError, match=rf"{argument} must be .*, not int"):
        AsyncRentGPU(**arguments)


@pytest.mark.parametrize("token", [None, "", "  ", "a\nb", "pässword", "a\x00"])
def test_unsendable_token_is_refused_and_not_shown(token: str | None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(token=token)
    assert token is None or not token.strip() or token not in str(caught.value)


def test_token_is_not_shown_by_repr_or_pickle() -> None:
    settings = resolve(token="canary", proxy="http://user:canary@proxy:1")
    assert "canary" not in repr(settings)
    with pytest.raises(TypeError):
        pickle.dumps(settings)
    client = AsyncRentGPU("canary")
    assert repr(client) == "AsyncRentGPU(base_url='https://api.netmind.ai')"
    with pytest.raises(TypeError):
        pickle.dumps(client)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        (None, "https://api.netmind.ai"),
        ("https://gateway.example/netmind/", "https://gateway.example/netmind"),
        ("https://gateway.example:8443", "https://gateway.example:8443"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.1.2.3", "http://127.1.2.3"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_base_url_is_accepted_and_normalised(url: str | None, kept: str) -> None:
    assert resolve(base_url=url).base_url == kept
    assert resolve({"NETMIND_BASE_URL": url or ""}).base_url == kept


@pytest.mark.parametrize(
    "url",
    [
        "api.netmind.ai",
        "ftp://api.netmind.ai",
        "https://",
        "https://user:canary@api.netmind.ai",
        "https://api.netmind.ai?x=1",
        "https://api.netmind.ai#x",
        "https://api.netmind.ai:port",
        "http://api.netmind.ai",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "https://a..b",
        "https://h\\evil",
        "https://a b",
        "https://api.netmind.ai/v1/rentgpu",
        "https://api.netmind.ai/v1/rentgpu/",
        "https://api.netmind.ai/v1",
        "https://gateway.example/netmind/v1/",
    ],
)
def test_unusable_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(base_url=url)
    assert "canary" not in str(caught.value)


def test_plain_http_to_another_host_is_allowed_on_request() -> None:
    assert resolve(base_url="http://10.0.0.1", allow_insecure_http=True).base_url == "http://10.0.0.1"


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({"https_proxy": "http://proxy:1"}, "http://proxy:1"),
        ({"HTTPS_PROXY": "http://proxy:1"}, "http://proxy:1"),
        ({"all_proxy": "http://proxy:1"}, "http://proxy:1"),
        ({"https_proxy": "proxy:1"}, "http://proxy:1"),
        ({"http_proxy": "http://proxy:1"}, None),
        ({"https_proxy": "http://proxy:1", "no_proxy": "netmind.ai"}, None),
        ({"https_proxy": "http://proxy:1", "no_proxy": "*"}, None),
        ({"https_proxy": "http://proxy:1", "no_proxy": "example.com"}, "http://proxy:1"),
        ({}, None),
    ],
)
def test_proxy_of_the_system_is_used_unless_given(
    environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve().proxy == proxy
    assert resolve(proxy="http://mine:2").proxy == "http://mine:2"


def test_loopback_url_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    assert resolve(base_url="http://127.0.0.1:8000").proxy is None
    assert resolve(base_url="http://10.0.0.1", allow_insecure_http=True).proxy == "http://proxy:1"


def test_remote_proxy_for_plain_http_is_refused_unless_allowed() -> None:
    with pytest.raises(ConfigurationError, match="the proxy would see the token"):
        resolve(base_url="http://127.0.0.1:1", proxy="http://proxy:1")
    assert resolve(base_url="http://127.0.0.1:1", proxy="http://proxy:1", allow_insecure_http=True).proxy
    assert resolve(base_url="http://127.0.0.1:1", proxy="http://127.0.0.1:2").proxy


@pytest.mark.parametrize("proxy", ["http://me:canary\udcff@h:1", "http://us%3Aer:canary@h:1"])
def test_unsendable_proxy_login_is_refused_and_not_shown(proxy: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AsyncRentGPU("t", proxy=proxy)
    assert "canary" not in f"{caught.value!r} {caught.value.__context__!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("proxy", ["socks5://user:canary@proxy:1", "http://", "http://proxy:port", "http://proxy:0"])
def test_unusable_proxy_is_refused_and_not_shown(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(proxy=proxy)
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigurationError):
        resolve()


def test_timeouts_resolve_from_the_client_and_the_call() -> None:
    mine = Timeouts(total=7, connect=1, read=2, slot=3)
    assert resolve().timeouts == Timeouts()
    assert resolve(timeout=mine).timeouts == mine
    assert resolve(timeout=5).timeouts == Timeouts(total=5)
    assert resolve(timeout=None).timeouts == Timeouts(total=None)
    assert timeouts_for(DEFAULT, mine) is mine
    assert timeouts_for(5, mine) == Timeouts(total=5, connect=1, read=2, slot=3)
    assert timeouts_for(None, mine) == Timeouts(total=None, connect=1, read=2, slot=3)
    assert all(value is not None for value in (Timeouts().total, Timeouts().connect, Timeouts().read, Timeouts().slot))


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), "5", True, 10**400, 10**5000], ids=arguments.shown_value
)
def test_invalid_timeout_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout: must be Timeouts, seconds above 0, or None"):
        timeouts_for(value, Timeouts())
    with pytest.raises(InvalidArgumentError, match="read: must be a number of seconds above 0"):
        Timeouts(read=value)


def test_retries_resolve_from_counts_and_policies() -> None:
    assert resolve().retries == Retries()
    assert resolve(retries=0).retries == Retries(max_attempts=1)
    assert resolve(retries=2).retries == Retries(max_attempts=3)
    mine = Retries(max_attempts=9, base_delay=0.1)
    assert resolve(retries=mine).retries is mine


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"retries": -1}, "retries: must be a whole number, at least 0"),
        ({"retries": True}, "retries: must be a whole number, at least 0"),
        ({"retries": "3"}, "retries: must be a whole number, at least 0"),
        ({"max_connections": 0}, "max_connections: must be a whole number, at least 1"),
        ({"max_connections": 2.5}, "max_connections: must be a whole number, at least 1"),
    ],
    ids=str,
)
def test_invalid_count_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        resolve(**arguments)


@pytest.mark.parametrize("field", ["base_delay", "max_delay", "max_retry_after", "max_elapsed"])
@pytest.mark.parametrize(
    "value", [-1, float("nan"), float("inf"), "5", True, 10**400, 10**5000], ids=arguments.shown_value
)
def test_invalid_delay_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{field}: must be a number of seconds"):
        Retries(**{field: value})


# The account, as the state file knows it.


def earlier_account(spelling: str, token: str = "token") -> str:
    """Return what earlier versions called an account: by the origin as it was spelled."""
    return f"{spelling} {hashlib.sha256(f'{spelling} {token}'.encode()).hexdigest()[:32]}"


SPELLINGS = [
    "https://API.NetMind.AI",
    "HTTPS://api.netmind.ai",
    "https://api.netmind.ai:443",
    "https://api.netmind.ai:",
    "https://api.netmind.ai.",
    "https://api.netmind.ai/",
    "https://api.netmind.ai/prefix",
    "hTTps://Api.Netmind.ai.:443/",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_account_is_the_same_however_its_origin_is_spelled(spelling: str) -> None:
    usual = str(resolve().fingerprint)
    # It is what it was for the usual spelling, so that existing rows are found.
    assert usual == earlier_account("https://api.netmind.ai")
    assert str(resolve(base_url=spelling).fingerprint) == usual


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://[::1]:80", "http://[0:0::1]"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example:443"),
        ("https://B\u00dcCHER.example", "https://xn--bcher-kva.example"),
    ],
)
def test_addresses_and_international_names_are_one_origin(one: str, other: str) -> None:
    assert str(resolve(base_url=one).fingerprint) == str(resolve(base_url=other).fingerprint)


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.netmind.ai:8443",
        "https://api.netmind.ai:80",
        "https://netmind.ai",
        "https://api.netmind.ai.example",
        "http://localhost",
        "http://127.0.0.1:443",
    ],
)
def test_other_origins_are_other_accounts(base_url: str) -> None:
    assert str(resolve(base_url=base_url).fingerprint) != str(resolve().fingerprint)


@given(host=st.from_regex(r"[a-z]{1,9}(\.[a-z]{1,9}){0,3}", fullmatch=True), port=st.none() | st.integers(0, 65535))
def test_normalized_origin_is_its_own_normal_form(host: str, port: int | None) -> None:
    origin = normalized_origin(f"https://{host}{'' if port is None else f':{port}'}")
    assert normalized_origin(origin) == origin
    assert normalized_origin(f"HTTPS://{host.upper()}.:{'' if port is None else port}/") == origin


@pytest.mark.parametrize("spelling", [*SPELLINGS[:5], "https://Api.netmind.ai.:443"])
def test_accounts_of_earlier_versions_are_recognized(spelling: str) -> None:
    settings = resolve()
    spelled = spelling.partition("://")[0].lower() + "://" + spelling.partition("://")[2]
    is_usual = spelled == "https://api.netmind.ai"
    assert settings.fingerprint.is_earlier_spelling(earlier_account(spelled)) is not is_usual
    assert not settings.fingerprint.is_earlier_spelling(str(settings.fingerprint))
    assert not settings.fingerprint.is_earlier_spelling(earlier_account(spelled, "another token"))
    assert not settings.fingerprint.is_earlier_spelling(earlier_account("https://Netmind.ai"))


@pytest.mark.parametrize("account", ["", "account", "https://api.netmind.ai:x 0", "https://[ 0", "\x00"])
def test_account_that_cannot_be_read_is_no_earlier_one(account: str) -> None:
    assert not resolve().fingerprint.is_earlier_spelling(account)


@pytest.mark.parametrize("url", ["https://api.netmind.ai/v1", "https://api.netmind.ai/v1/rentgpu/"])
def test_base_url_with_the_version_says_where_it_has_to_end(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must end before /v1, which the client adds: 'https://api"):
        resolve(base_url=url)


@pytest.mark.parametrize("token", ["Bearer abc", "bearer  abc ", " BEARER\tabc", "abc"])
def test_token_may_be_given_as_a_header_has_it(token: str) -> None:
    assert resolve(token=token).token == "abc"
    assert resolve({"NETMIND_API_KEY": token}, token=None).token == "abc"


@pytest.mark.parametrize("token", ["Bearer", "bearer ", "Bearer  "])
def test_word_bearer_alone_is_no_token(token: str) -> None:
    with pytest.raises(ConfigurationError, match="no API token"):
        resolve(token=token)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "https_proxy", "HTTPS_PROXY"])
def test_unusable_proxy_of_the_environment_is_named_by_its_variable(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "socks5://user:canary@proxy:1")
    with pytest.raises(
        ConfigurationError, match=f"the proxy in the variable {variable}: its scheme is 'socks5'"
    ) as caught:
        resolve()
    assert "canary" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="the proxy in the argument proxy"):
        resolve(proxy="socks5://user:canary@proxy:1")


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("example.org, 192.168.0.0/16 ,10.0.0.0/8", "192.168.7.7", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("fd00::/8", "[fd12::1]", True),
        ("10.0.0.0/8", "api.netmind.ai", False),
        ("10.0.0.0/99,x/8,/", "10.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("localhost 10.0.0.0/8", "10.1.2.3", True),
    ],
)
def test_no_proxy_takes_networks(no_proxy: str, host: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (resolve(base_url=f"https://{host}").proxy is None) is is_direct


def test_relative_xdg_folder_is_ignored(tmp_path: Path) -> None:
    default = Path("~/.local/state/netmind-rentgpu/state.sqlite3").expanduser()
    for folder in ("state", "./state", "../state", ""):
        assert resolve({"XDG_STATE_HOME": folder}).state == default
    assert resolve({"XDG_STATE_HOME": str(tmp_path)}).state == tmp_path / "netmind-rentgpu" / "state.sqlite3"


@pytest.mark.parametrize("proxy", ["joe:canary://x@h:1", "canary://h:1", "http://h:99999", "h:1", "://h"])
def test_unusable_proxy_shows_no_part_that_may_be_a_password(proxy: str) -> None:
    with pytest.raises(ConfigurationError, match="it must be an http:// or https:// URL with a host") as caught:
        resolve(proxy=proxy)
    assert "canary" not in str(caught.value)
    assert "scheme" not in str(caught.value)
