"""The configuration file: where it is, what it says, and how each mistake in it is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from netmind_rentgpu import ConfigurationError
from netmind_rentgpu.config_file import ConfigFile, config_path, parse_config, read_config

FOLDER = Path("/home/a/.config/netmind-rentgpu")
PATH = FOLDER / "config.toml"
WORK = '[accounts.work]\ntoken_file = "tokens/work"\n'


def parsed(text: str | bytes) -> ConfigFile:
    return parse_config(text.encode() if isinstance(text, str) else text, PATH)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a folder of its own")
@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"XDG_CONFIG_HOME": "/x"}, "/x/netmind-rentgpu/config.toml"),
        # The specification says to ignore it.
        ({"XDG_CONFIG_HOME": "x"}, "~/.config/netmind-rentgpu/config.toml"),
        ({"XDG_CONFIG_HOME": ""}, "~/.config/netmind-rentgpu/config.toml"),
        ({}, "~/.config/netmind-rentgpu/config.toml"),
    ],
)
def test_file_is_in_the_users_configuration_folder(environment: dict[str, str], path: str) -> None:
    assert config_path(environment) == Path(path).expanduser()


def test_missing_file_is_an_empty_configuration(tmp_path: Path) -> None:
    config = read_config({"XDG_CONFIG_HOME": str(tmp_path)})
    assert (config.account, config.accounts, config.defaults) == (None, {}, {})
    assert parsed("") == ConfigFile(path=PATH)


def test_all_settings_are_read() -> None:
    config = parsed("""
        account = "work"

        [defaults]
        ttl = "2h"
        budget = 5
        image = "PyTorch 2.4"
        output = "json"
        ask_above = 1.50

        [accounts.work]
        token_command = "pass show 'my netmind'"
        base_url = "https://example.org"
        profile = "work.toml"

        [accounts."at.home-2_b"]
        token_file = "/tokens/home"

        [accounts.list]
        token_command = ["pass", "show", "a b"]
    """)
    assert config.account == "work"
    assert config.defaults == {
        "ttl": "2h",
        "budget": "5",
        "image": "PyTorch 2.4",
        "output": "json",
        "ask_above": "1.50",
    }
    work, home, listed = config.accounts.values()
    assert work.token_command == ("pass", "show", "my netmind")
    assert (work.base_url, work.profile, work.token_file) == ("https://example.org", FOLDER / "work.toml", None)
    assert (home.name, home.token_file, home.profile) == ("at.home-2_b", Path("/tokens/home"), None)
    assert listed.token_command == ("pass", "show", "a b")
    assert parsed(WORK).accounts["work"].token_file == FOLDER / "tokens" / "work"
    assert "my netmind" not in repr(config)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"account = '\xff'", "it is not UTF-8: byte 11 cannot be read"),
        ("account = ", "it is no TOML: Invalid value"),
        ("account = 'a'\naccount = 'b'", "it is no TOML: Cannot overwrite a value "),
        ("acount = 'a'", "acount is no setting; did you mean account?"),
        ("zzz = 1", "zzz is no setting; it may be account, defaults, accounts"),
        ("account = 5", "account must be a text, not int"),
        ("account = ''", "account must be a text, not an empty one"),
        ("account = 'a'", "account is 'a', which is not among its accounts; it has no accounts; `rentgpu login` makes"),
        (f"account = 'a'\n{WORK}", "account is 'a', which is not among its accounts; it has work"),
        ("accounts = 5", "accounts must be a table, [accounts]"),
        ("defaults = []", "defaults must be a table, [defaults]"),
        ("[accounts]\nwork = 5", "accounts.work must be a table, [accounts.work]"),
        ("[accounts.'a/b']\ntoken_file = 'x'", "'a/b' cannot be the name of an account: use up to 64 letters"),
        ("[accounts.work]", "accounts.work has neither token_command nor token_file; add one of them"),
        (f"{WORK}token_command = 'x'", "accounts.work has both token_command and token_file; keep one of them"),
        (f"{WORK}tokn = 5", "accounts.work.tokn is no setting; it may be token_command, token_file, profile, base_url"),
        (f"{WORK}base-url = 'x'", "accounts.work.base-url is no setting; did you mean base_url?"),
        (f"{WORK}profile = 5", "accounts.work.profile must be a text, not int"),
        (f"{WORK}profile = '~no.such.user/x'", "accounts.work.profile: Could not determine home directory"),
        ("[accounts.work]\ntoken_file = ['x']", "accounts.work.token_file must be a text, not list"),
        ("[accounts.work]\ntoken_command = 5", "accounts.work.token_command must be a text or a list of texts"),
        ("[accounts.work]\ntoken_command = ['a', 5]", "accounts.work.token_command must be a text or a list of texts"),
        ("[accounts.work]\ntoken_command = []", "accounts.work.token_command is empty"),
        ("[accounts.work]\ntoken_command = ' '", "accounts.work.token_command is empty"),
        (
            '[accounts.work]\ntoken_command = "a \'b"',
            "accounts.work.token_command cannot be split into words: No closing",
        ),
        ("[defaults]\nbugdet = 5", "defaults.bugdet is no setting; did you mean budget?"),
        ("[defaults]\nttl = 5", "defaults.ttl must be a text, not int"),
        *(
            (f"[defaults]\nbudget = {value}", "defaults.budget must be an amount")
            for value in ("true", "[]", "nan", "-1", "inf")
        ),
        ("[defaults]\nask_above = 1e13", "defaults.ask_above must be an amount"),
        (f"x = {'[' * 100_000}", "it cannot be read (RecursionError)"),
        (f"[defaults]\nbudget = {'9' * 5000}", "it cannot be read (ValueError)"),
        (f'{WORK}[accounts.WORK]\ntoken_file = "x"', "the names of two accounts differ in the case of their letters"),
        ('[accounts.work]\ntoken_file = "a\\u0000b"', "accounts.work.token_file holds a null character"),
        ('[accounts.work]\ntoken_command = ["a", "\\u0000"]', "accounts.work.token_command holds a null character"),
        (f"{WORK}base_url = 'nonsense'", "accounts.work.base_url must be an http:// or https:// URL with a host"),
        (f"{WORK}base_url = 'ftp://x'", "accounts.work.base_url must be an http:// or https:// URL with a host"),
        (f"{WORK}base_url = 'http://[x'", "accounts.work.base_url is no URL"),
        (f"{WORK}base_url = 'http://a:canary@x'", "accounts.work.base_url must not hold a user name or a password"),
    ],
)
def test_mistake_is_named_with_its_place_and_the_file(text: str | bytes, cause: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parsed(text)
    assert str(raised.value).startswith(f"cannot use the configuration file {PATH}: {cause}")


@pytest.mark.parametrize("place", ["", "[accounts.work]\n", "[defaults]\n"])
@pytest.mark.parametrize("name", ["token", "api_key", "API_TOKEN"])
def test_token_in_the_file_is_refused_and_not_shown(place: str, name: str) -> None:
    with pytest.raises(
        ConfigurationError, match="a token does not belong in this file; use token_command or"
    ) as raised:
        parsed(f"{place}{name} = 'canary'")
    assert "canary" not in str(raised.value)


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "netmind-rentgpu" / "config.toml").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"cannot use the configuration file .*config.toml: Is a directory"):
        read_config({"XDG_CONFIG_HOME": str(tmp_path)})


def test_byte_order_mark_of_an_editor_is_no_mistake() -> None:
    assert list(parsed(b"\xef\xbb\xbf" + WORK.encode()).accounts) == ["work"]


def test_unknown_account_is_an_error_that_names_the_others() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no account 'home' in .*config.toml; it has work"):
        parsed(WORK).get("home")
    with pytest.raises(ConfigurationError, match="it has no accounts; `rentgpu login` makes one"):
        parsed("").get("home")
