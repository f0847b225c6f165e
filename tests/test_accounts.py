"""The account of a client: which one it is, how its token is read, and which of its settings count."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import standard_streams

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, RentGPU
from netmind_rentgpu import accounts as accounts_module
from netmind_rentgpu.emulator import Emulator

posix = pytest.mark.skipif(os.name != "posix", reason="the modes of files are those of POSIX")


class Config:
    """A configuration file, and files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def write(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text)

    def token(self, token: str = "of-the-file", *, name: str = "work", mode: int = 0o600) -> None:
        (self.folder / name).write_text(token)
        (self.folder / name).chmod(mode)


@pytest.fixture
def config(tmp_path: Path, no_environment: None) -> Config:
    config = Config(tmp_path / "netmind-rentgpu-config" / "netmind-rentgpu")
    config.write("""
        account = "work"

        [accounts.work]
        token_file = "work"
        base_url = "https://work.example"
        profile = "work.toml"

        [accounts.home]
        token_file = "home"
    """)
    config.token()
    config.token("of-home", name="home")
    (config.folder / "work.toml").write_text('authorization = "bare"')
    return config


def told(**options: str) -> tuple[str, str, str]:
    """Return the token, the URL and the form of the header of a client with options."""
    client = AsyncRentGPU(**options)
    settings = client._parts.settings
    return settings.token, settings.base_url, client.profile.authorization


def test_account_in_use_gives_token_url_and_profile(config: Config) -> None:
    assert told() == ("of-the-file", "https://work.example", "bare")
    with RentGPU() as gpu:
        assert gpu._async._parts.settings.token == "of-the-file"


def test_arguments_and_variables_go_before_the_account_in_use(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    (config.folder / "other.toml").write_text('authorization = "bearer"')
    assert told(base_url="https://argument.example")[1] == "https://argument.example"
    assert told(profile=str(config.folder / "other.toml"))[2] == "bearer"
    monkeypatch.setenv("NETMIND_BASE_URL", "https://variable.example")
    monkeypatch.setenv("NETMIND_RENTGPU_PROFILE", str(config.folder / "other.toml"))
    assert told() == ("of-the-file", "https://variable.example", "bearer")


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_settings_of_an_account_count_only_with_its_token(
    config: Config, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    if given == "variable":
        monkeypatch.setenv("NETMIND_API_KEY", "other")
    options = {"token": "other"} if given == "argument" else {}
    assert told(**options) == ("other", "https://api.netmind.ai", "bearer")


def test_named_account_goes_before_the_environment_with_all_that_belongs_to_it(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETMIND_API_KEY", "other")
    monkeypatch.setenv("NETMIND_BASE_URL", "https://variable.example")
    assert told(account="work") == ("of-the-file", "https://work.example", "bare")
    assert told(account="work", base_url="https://argument.example")[1] == "https://argument.example"
    # It names no service of its own, so that its token goes to the usual one.
    assert told(account="home") == ("of-home", "https://api.netmind.ai", "bearer")


def test_token_and_account_together_are_an_error(config: Config) -> None:
    with pytest.raises(ConfigurationError, match="both a token and an account were given"):
        told(token="other", account="work")


def test_unknown_account_is_an_error(config: Config) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no account 'wrok' in .*; it has work, home"):
        told(account="wrok")


def test_file_with_a_mistake_is_an_error_only_where_it_is_read(config: Config) -> None:
    config.write("account = ")
    with pytest.raises(ConfigurationError, match="it is no TOML"):
        told()
    assert told(token="other")[0] == "other"


def test_accounts_of_which_none_is_chosen_are_named(config: Config) -> None:
    config.write("[accounts.work]\ntoken_file = 'work'\n[accounts.home]\ntoken_file = 'home'")
    with pytest.raises(ConfigurationError, match="or choose an account by `rentgpu account use`: there is work, home"):
        told()


def test_url_of_an_account_that_cannot_be_used_names_the_account(config: Config) -> None:
    config.write("account = 'work'\n[accounts.work]\ntoken_file = 'work'\nbase_url = 'http://work.example'")
    with pytest.raises(ConfigurationError, match=r"account work: the base URL 'http://work.example' would send"):
        told()


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o677])
def test_token_file_that_others_may_use_is_refused(config: Config, mode: int) -> None:
    config.token(mode=mode)
    with pytest.raises(ConfigurationError, match=r"account work: other users may use .*; run `chmod 600") as raised:
        told()
    assert "of-the-file" not in str(raised.value)


@posix
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_token_file_of_the_user_alone_is_read(config: Config, mode: int) -> None:
    config.token(mode=mode)
    assert told()[0] == "of-the-file"


def test_missing_token_file_says_to_log_in(config: Config) -> None:
    (config.folder / "work").unlink()
    with pytest.raises(ConfigurationError, match=r"work does not exist; run `rentgpu login work`"):
        told()


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_empty_token_file_is_an_error(config: Config, content: bytes) -> None:
    (config.folder / "work").write_bytes(content)
    with pytest.raises(ConfigurationError, match="work is empty"):
        told()


@pytest.mark.parametrize("content", [b"\xef\xbb\xbftoken\r\n", b"token", b"\ntoken\n"])
def test_token_file_may_have_a_mark_and_line_ends(config: Config, content: bytes) -> None:
    (config.folder / "work").write_bytes(content)
    assert told()[0] == "token"


def test_token_file_of_several_lines_is_an_error(config: Config) -> None:
    config.token("token\nanother")
    with pytest.raises(ConfigurationError, match=r"account work: .*work holds more than a token") as raised:
        told()
    assert "another" not in str(raised.value)


def test_token_file_that_is_no_text_is_an_error(config: Config) -> None:
    (config.folder / "work").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="work is not UTF-8"):
        told()
    (config.folder / "work").unlink()
    (config.folder / "work").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="cannot read the token of account work"):
        told()


def command(config: Config, code: str) -> None:
    words = ", ".join(f"'{word}'" for word in (sys.executable, "-c", code))
    config.write(f"account = 'work'\n[accounts.work]\ntoken_command = [{words}]")


@pytest.mark.parametrize(
    "code", ['print("token")', r'print("\n  token \r\nuser: me")', 'print("Bearer token", end="")']
)
def test_token_command_prints_the_token_in_its_first_line(config: Config, code: str) -> None:
    command(config, code)
    assert told()[0] == "token"


def test_token_command_gets_no_stdin_that_is_piped_into_the_program(config: Config) -> None:
    command(config, 'import sys; print("token" if sys.stdin.read() == "" else "piped")')
    with standard_streams(b"piped"):
        assert told()[0] == "token"
        assert os.read(0, 10) == b"piped"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise SystemExit(3)", "exited with 3"),
        ("pass", "printed nothing"),
        ('print("a b")', "holds more than a token"),
        (r'import sys; sys.stdout.buffer.write(b"\xff")', "printed no text"),
        ("import os; os.kill(os.getpid(), 9)", "exited with -9"),
    ],
)
def test_token_command_that_fails_is_an_error_that_does_not_show_its_arguments(
    config: Config, code: str, cause: str
) -> None:
    command(config, code)
    with pytest.raises(ConfigurationError, match=f"account work: .*{cause}") as raised:
        told()
    assert code not in str(raised.value)


def test_token_command_that_is_missing_or_hangs_is_an_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write("account = 'work'\n[accounts.work]\ntoken_command = 'no-such-program x'")
    # A token may stand there by mistake.
    with pytest.raises(ConfigurationError, match="a command that is not there: No such file or directory") as raised:
        told()
    assert "no-such-program" not in str(raised.value)
    command(config, "import time; time.sleep(1000)")
    monkeypatch.setattr(accounts_module, "_LONGEST_COMMAND", 0.2)
    with pytest.raises(ConfigurationError, match="printed no token within 0 s"):
        told()


def test_interruption_at_the_start_of_a_token_command_leaves_no_process(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    command(config, "import time; time.sleep(1000)")
    monkeypatch.setattr(accounts_module.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        told()
    assert [process.returncode for process in started] == [-signal.SIGKILL]


async def test_client_with_an_account_reaches_the_service(config: Config, emulator: Emulator) -> None:
    config.write(f"account = 'work'\n[accounts.work]\ntoken_file = 'work'\nbase_url = '{emulator.url}'")
    config.token(emulator.token)
    async with AsyncRentGPU() as gpu:
        assert await gpu.machines.list()
    assert stat.S_IMODE((config.folder / "work").stat().st_mode) == 0o600
