"""Accounts on the command line: `login`, `logout`, `account` and `config`, and what a rental takes from the file."""

from __future__ import annotations

import stat
import tomllib
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import canaries
import pytest
from command_line import PROGRAM, Done, Here, Site
from rented import IMAGE
from terminals import terminal
from until import until_sync

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.cli.confirming import highest_cost, highest_price
from netmind_rentgpu.emulator import Fault

FORMS = ["table", "json", "jsonl", "csv"]


@attrs.frozen
class User:
    """A user with an empty environment and a configuration file.

    Attributes:
        folder: the folder of the file.
    """

    here: Here
    folder: Path

    def run(self, *words: str, given: bytes = b"", **variables: str) -> Done:
        done = self.here.run(*words, given=given, **{"NETMIND_API_KEY": "", "NETMIND_RENTGPU_PROFILE": "", **variables})
        assert canaries.TOKEN not in done.text + done.errors
        return done

    def log_in(self, *words: str, token: str = canaries.TOKEN, **variables: str) -> Done:
        return self.run("login", *words, "--token-file", "-", given=token.encode(), **variables)

    @property
    def config(self) -> str:
        return (self.folder / "config.toml").read_text()

    def write(self, text: str) -> None:
        self.folder.mkdir(exist_ok=True, parents=True)
        (self.folder / "config.toml").write_text(text)

    def offer_command(self) -> tuple[str, ...]:
        return ("offers", "--gpu", "4090", "-o", "json")


@pytest.fixture
def user(here: Here, tmp_path: Path) -> User:
    return User(here, tmp_path / "netmind-rentgpu-config" / "netmind-rentgpu")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_token_in_the_environment_is_said_to_go_before_the_account_that_is_used(user: User) -> None:
    note = "NETMIND_API_KEY is set, and goes before the account in use"
    user.write('[accounts.work]\ntoken_command = ["false"]\n')
    assert note in user.run("account", "use", "work", NETMIND_API_KEY="x").errors
    assert note not in user.run("account", "use", "work").errors
    assert note not in user.run("-q", "account", "use", "work", NETMIND_API_KEY="x").errors


def test_login_saves_a_token_that_works_for_further_commands(user: User, site: Site) -> None:
    assert user.run(*user.offer_command()).code == 78
    done = user.log_in("-o", "json")
    assert (done.code, done.json["check"], done.json["is_used"]) == (0, "the token works", True)
    path = user.folder / "tokens" / "default"
    assert done.json["token_from"] == str(path)
    assert f"saved in {path}, and named in {user.folder / 'config.toml'}" in done.errors
    # The service is saved with it, because the token is for that alone.
    account = {"token_file": "tokens/default", "base_url": site.emulator.url}
    assert tomllib.loads(user.config) == {"account": "default", "accounts": {"default": account}}
    assert [mode(path), mode(path.parent), mode(user.folder / "config.toml")] == [0o600, 0o700, 0o600]
    assert user.run(*user.offer_command(), NETMIND_BASE_URL="").json


def test_login_of_a_refused_token_saves_nothing(user: User) -> None:
    user.write("# mine\n")
    done = user.log_in(token="wrong")
    assert done.code == 77
    assert "Nothing was saved." in done.errors
    assert (user.config, names(user.folder)) == ("# mine\n", ["config.toml"])


def test_login_that_reaches_no_service_saves_the_token_and_says_so(user: User, site: Site) -> None:
    site.emulator.faults.add(Fault("status", call="list_containers", status=503, times="all"))
    done = user.log_in("-o", "json")
    assert (done.code, done.json["check"]) == (69, "nothing: it was not reached")
    assert done.problem["status"] == 503
    site.emulator.faults.clear()
    assert user.run(*user.offer_command()).code == 0


def test_login_again_replaces_the_token_and_keeps_the_rest_of_the_file(user: User) -> None:
    user.write("# mine\n[defaults] # usual\nttl = '2h'\n[accounts.work]\ntoken_command = 'pass x' # old\n")
    refused = user.log_in("work")
    assert refused.code == 2
    assert "has its token from elsewhere, which a saved token replaces" in refused.errors
    assert user.log_in("work", "-y").code == 0
    assert user.config.startswith("# mine\n")
    assert "[defaults] # usual\nttl = '2h'\n" in user.config
    assert "token_command" not in user.config
    assert user.log_in("work", "--profile", "p.toml").code == 78  # no such file
    (user.here.site.folder / "p.toml").write_text("")
    assert user.log_in("work", "--profile", "p.toml").code == 0
    assert f'profile = "{user.here.site.folder / "p.toml"}"' in user.config


@pytest.mark.parametrize("given", ["", "  \n"])
def test_login_without_a_token_is_a_mistake_of_the_command_line(user: User, given: str) -> None:
    assert user.log_in(token=given).code == 2
    done = user.run("login")
    assert done.code == 2
    assert (
        "API token: no terminal is here to ask for it on\nGive it with --token-file FILE, where - is stdin"
        in done.errors
    )
    assert user.run("login", "--token-file", "missing").code == 66
    assert user.log_in("a/b").code == 78
    assert user.run("login", "--token-file", "-", given=b"\xff").code == 2


def test_token_is_typed_unseen_and_is_in_no_command_line(user: User, site: Site) -> None:
    environment = {**site.environment, "NETMIND_API_KEY": ""}
    with terminal([*PROGRAM, "login", "home"], folder=site.folder, environment=environment) as shown:
        shown.until("API token: ")
        assert canaries.TOKEN not in Path(f"/proc/{shown.process.pid}/cmdline").read_text()
        shown.type(f"{canaries.TOKEN}\n")
        shown.until("the token works")
        assert shown.end() == 0
    assert canaries.TOKEN not in shown.shown
    assert (user.folder / "tokens" / "home").read_text() == f"{canaries.TOKEN}\n"


def test_interrupted_login_saves_nothing(user: User, site: Site) -> None:
    environment = {**site.environment, "NETMIND_API_KEY": ""}
    with terminal([*PROGRAM, "login"], folder=site.folder, environment=environment) as shown:
        shown.until("API token: ")
        shown.type("\x03")
        assert shown.end() == 130
    assert not user.folder.exists()


def test_login_that_cannot_write_the_file_keeps_the_earlier_token(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.log_in("work")
    token, config = user.folder / "tokens" / "work", user.config
    token.write_text("earlier")
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if target.name == "config.toml":
            raise PermissionError(13, "Permission denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    for name in ("work", "new"):
        done = user.log_in(name)
        assert done.code == 74
        assert f"Permission denied: '{user.folder / 'config.toml'}'" in done.errors
    assert (token.read_text(), user.config, names(user.folder / "tokens")) == ("earlier", config, ["work"])


def test_logins_at_the_same_time_all_count(user: User, site: Site) -> None:
    environment = {**site.environment, "NETMIND_API_KEY": ""}
    (site.folder / "token").write_text(canaries.TOKEN)
    started = [site.start("login", f"a{number}", "--token-file", "token", env=environment) for number in range(4)]
    assert [site.end(process).code for process in started] == [0] * 4
    listed = user.run("account", "list", "-o", "json").json
    assert sorted(row["name"] for row in listed) == ["a0", "a1", "a2", "a3"]
    assert sum(row["is_used"] for row in listed) == 1


def test_name_that_is_the_token_is_refused(user: User) -> None:
    done = user.log_in("tokenname", token="tokenname")
    assert done.code == 2
    assert "the name of the account is the token itself" in done.errors


def test_logout_removes_a_token_that_a_failed_run_has_left(user: User) -> None:
    user.log_in()
    user.write("# nothing\n")
    assert user.run("logout", "default", "-y").code == 0
    assert names(user.folder / "tokens") == []


def test_token_of_a_named_account_goes_to_its_own_service_alone(user: User, site: Site) -> None:
    user.write("[accounts.real]\ntoken_file = 'real'\n")
    (user.folder / "real").write_text("real")
    (user.folder / "real").chmod(0o600)
    rows = settings(user.run("--account", "real", "config", "list", "-o", "json", NETMIND_BASE_URL=site.emulator.url))
    assert rows["base_url"] == ("https://api.netmind.ai", "default")


def test_signal_ends_a_command_that_waits_for_the_token(user: User, site: Site) -> None:
    user.write("account = 'slow'\n[accounts.slow]\ntoken_command = 'sh -c \"touch begun; exec sleep 1000\"'\n")
    site.measured = False
    process = site.start("rentals", "list", env={"NETMIND_API_KEY": ""})
    until_sync((site.folder / "begun").exists)
    process.terminate()
    assert site.end(process).code == 143


def test_signal_at_the_start_of_the_command_that_prints_the_token_leaves_no_process(user: User, site: Site) -> None:
    user.write("account = 'slow'\n[accounts.slow]\ntoken_command = 'sh -c \"kill -TERM $PPID; exec sleep 1000\"'\n")
    site.measured = False
    # The end of its output is that of the command, too.
    assert site.run("rentals", "list", env={"NETMIND_API_KEY": ""}).code == 143


def test_logout_asks_and_removes_the_account_with_its_token(user: User) -> None:
    user.log_in()
    user.log_in("other")
    done = user.run("logout")
    assert done.code == 2
    assert "Account default is removed from" in done.errors
    assert user.run("logout", "-y").code == 0
    assert names(user.folder / "tokens") == ["other"]
    assert "default" not in user.config
    assert user.run("logout", "default", "-y").code == 0  # it is gone already
    assert user.run("logout", "-y").code == 2
    assert "no account is in use\nName one: it has other." in user.run("logout").errors


def test_logout_says_how_many_rentals_are_left(user: User, site: Site) -> None:
    user.log_in()
    user.run("rent", "--gpu", "4090", "-d", "--ttl", "1h")
    assert "1 of its rentals are on record, and cannot be given back" in user.run("logout").errors
    assert user.run("rentals", "release", "-y").code == 0
    assert "on record" not in user.run("logout").errors


def test_token_file_that_login_has_not_written_stays(user: User, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(canaries.TOKEN)
    own.chmod(0o600)
    user.write(f"account = 'work'\n[accounts.work]\ntoken_file = '{own}'\n")
    assert user.run("logout", "-y").code == 0
    assert own.exists()
    assert user.config == ""


@pytest.mark.parametrize("form", FORMS)
def test_accounts_are_listed_used_and_shown_in_each_form(user: User, form: str) -> None:
    user.write("[accounts.work]\ntoken_command = ['sh', '-c', 'canary']\n[accounts.home]\ntoken_file = 'home'\n")
    for words in (("list",), ("use", "work"), ("show",), ("show", "home")):
        done = user.run("account", *words, "-o", form)
        assert done.code == 0
        assert "canary" not in done.text
        assert ("the command sh" in done.text) == (words != ("show", "home"))
    assert "account = 'work'" in user.config.replace('"', "'")
    assert user.run("account", "list", "-o", "json").json[0]["is_used"] is True
    assert "home does not exist; run `rentgpu login home`" in user.run("account", "show", "home").text
    assert user.run("account", "use", "wrok").code == 78
    assert user.run("account", "show", "wrok").code == 78


def test_account_of_an_option_goes_before_the_environment(user: User, site: Site) -> None:
    user.log_in("work")
    assert user.run(*user.offer_command(), NETMIND_API_KEY="wrong").code == 77
    assert user.run("--account", "work", *user.offer_command(), NETMIND_API_KEY="wrong").code == 0
    assert user.run("--account", "home", *user.offer_command()).code == 78


def settings(done: Done) -> dict[str, tuple[Any, Any]]:
    return {row["name"]: (row["value"], row["source"]) for row in done.json}


def test_each_setting_is_listed_with_its_source(user: User, site: Site) -> None:
    plain = settings(user.run("config", "list", "-o", "json", NETMIND_BASE_URL="", NETMIND_RENTGPU_STATE=""))
    state = str(site.folder / "netmind-rentgpu" / "state.sqlite3")
    assert plain == {
        "account": (None, None),
        "token": (None, None),
        "base_url": ("https://api.netmind.ai", "default"),
        "profile": (None, None),
        "state": (state, "default"),
        "ttl": ("24h", "default"),
        "budget": (None, None),
        "image": (None, None),
        "output": ("json", "--output"),
        "ask_above": (None, None),
    }
    user.write("""
        account = "work"
        [defaults]
        ttl = "2h"
        budget = 5
        image = "x"
        output = "json"
        ask_above = 0
        [accounts.work]
        token_file = "work"
        base_url = "https://work.example"
        profile = "work.toml"
    """)
    found = settings(user.run("config", "list", NETMIND_BASE_URL="", NETMIND_RENTGPU_STATE="/s"))
    profile = str(user.folder / "work.toml")
    assert found == {
        "account": ("work", "config.toml"),
        "token": ("set", "account work"),
        "base_url": ("https://work.example", "account work"),
        "profile": (profile, "account work"),
        "state": ("/s", "NETMIND_RENTGPU_STATE"),
        "ttl": ("2h", "[defaults]"),
        "budget": ("5", "[defaults]"),
        "image": ("x", "[defaults]"),
        "output": ("json", "[defaults]"),
        "ask_above": ("0", "[defaults]"),
    }
    words = ("--base-url", "http://127.0.0.1:1", "--state", "/t", "--profile", "p", "--account", "work")
    given = settings(user.run("config", "list", *words, NETMIND_API_KEY="x"))
    assert given["base_url"] == ("http://127.0.0.1:1", "--base-url")
    assert (given["state"], given["profile"]) == (("/t", "--state"), ("p", "--profile"))
    assert (given["account"], given["token"]) == (("work", "--account"), ("set", "account work"))
    variables = {"NETMIND_API_TOKEN": "x", "NETMIND_RENTGPU_PROFILE": "q", "NETMIND_BASE_URL": "http://127.0.0.1:2"}
    varied = settings(user.run("config", "list", **variables))
    assert (varied["account"], varied["token"]) == ((None, None), ("set", "NETMIND_API_TOKEN"))
    assert varied["profile"] == ("q", "NETMIND_RENTGPU_PROFILE")
    assert varied["base_url"] == ("http://127.0.0.1:2", "NETMIND_BASE_URL")


@pytest.mark.parametrize("form", FORMS)
def test_one_setting_and_the_path_are_printed_in_each_form(user: User, form: str) -> None:
    path = user.folder / "config.toml"
    assert str(path) in user.run("config", "path", "-o", form).text
    assert "24h" in user.run("config", "get", "ttl", "-o", form).text
    assert "24h" in user.run("config", "list", "-o", form).text
    user.log_in()
    assert "set" in user.run("config", "get", "token", "-o", form).text
    wrong = user.run("config", "get", "tll", "-o", form)
    assert wrong.code == 2
    assert "'tll' is no setting" in wrong.errors


@pytest.mark.parametrize("mistake", ["account = ", "[defaults]\nttl = '2x'", "[defaults]\noutput = 'xml'"])
@pytest.mark.parametrize("words", [("rentals", "list"), ("rent", "--", "true"), ("config", "list"), ("offers",)])
def test_mistake_in_the_file_ends_a_command_with_its_place(user: User, mistake: str, words: tuple[str, ...]) -> None:
    user.write(mistake)
    done = user.run(*words)
    assert done.code == 78
    assert f"cannot use the configuration file {user.folder / 'config.toml'}: " in done.errors
    # What helps with a mistake goes on.
    assert user.run("config", "path").code == 0
    assert user.run("help", "exit-codes").code == 0


def test_form_of_results_in_the_file_counts_unless_an_option_says_another(user: User) -> None:
    user.write("[defaults]\noutput = 'json'")
    user.log_in()
    assert user.run("rentals", "list").json == []
    assert user.run("rentals", "list", "-o", "csv").text == ""
    # Errors have the same form.
    assert user.run("rentals", "show", "x").problem["exit_code"] == 66
    assert user.run("help", "exit-codes").text.startswith("# Exit codes")


def test_rent_uses_the_defaults_of_the_file_unless_options_say_others(user: User, site: Site) -> None:
    user.write(f"[defaults]\nttl = '2h'\nbudget = 1.25\nimage = '{IMAGE}'")
    user.log_in()
    done = user.run("rent", "--gpu", "4090", "-d", "-o", "json")
    name = done.json["name"]
    shown = user.run("rentals", "show", name, "-o", "json").json
    assert (shown["image"], Decimal(str(shown["budget"]))) == (IMAGE, Decimal("1.25"))
    dry = user.run("rent", "--gpu", "4090", "--dry-run", "-o", "json", "--ttl", "1h").json
    price = Decimal(str(dry[0]["hourly_price"]))
    assert Decimal(str(dry[0]["max_cost"])) == price
    user.run("rentals", "release", "-y")


def test_rent_asks_where_its_highest_cost_is_above_the_limit_of_the_file(user: User, site: Site) -> None:
    user.write("[defaults]\nask_above = 1")
    user.log_in()
    done = user.run("rent", "--gpu", "4090", "--", "true")
    assert done.code == 2
    assert "This rental may cost " in done.errors
    assert " USD in 1 d, which is above 1 (ask_above).\nNothing was done" in done.errors
    assert (
        "Renting 3 machines may cost"
        in user.run("rent", "--gpu", "4090", "--count", "3", "--ttl", "1h", "--", "x").errors
    )
    assert not site.emulator.requests.of("create_container")
    for words in (("--budget", "1"), ("--ttl", "10m"), ("-y",)):
        assert user.run("rent", "--gpu", "4090", *words, "--", "true").code == 0
    assert user.run("rent", "--gpu", "4090", "--max-price", "0.01", "--", "true").code == 75


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0), ("\x03", 130)])
def test_answer_decides_over_a_rental_above_the_limit(user: User, site: Site, answer: str, code: int) -> None:
    user.write("[defaults]\nask_above = 1")
    words = ("rent", "--gpu", "4090", "--", "echo ran")
    with terminal([*PROGRAM, *words], folder=site.folder, environment=site.environment) as shown:
        shown.until(r"above 1 \(ask_above\)\. \[y/N\] ")
        shown.type(answer)
        assert shown.end() == code
    assert "bug" not in shown.shown
    assert ("ran" in shown.shown) == (code == 0)


async def test_highest_cost_is_that_of_the_dearest_offer(gpu: AsyncRentGPU) -> None:
    offers = await gpu.offers(gpu_name="4090")
    dearest = max(offer.hourly_price or Decimal(0) for offer in offers)
    hours = timedelta(hours=2)
    assert highest_cost(offers, hours, None) == dearest * 2
    assert highest_cost(offers, hours, None, machines=3) == dearest * 6
    assert highest_cost(offers, hours, Decimal("0.01"), machines=3) == Decimal("0.01")
    unknown = attrs.evolve(offers[0], hourly_price=None)
    assert highest_cost([*offers, unknown], hours, None) is None
    assert highest_cost([unknown], hours, Decimal(3)) == Decimal(3)
    assert highest_cost([], hours, None) is None


async def test_price_is_bounded_by_the_allowed_cost(gpu: AsyncRentGPU) -> None:
    offers = await gpu.offers(gpu_name="4090", gpus=2)
    listed = [offer.machine.price for offer in offers if offer.machine.price is not None]
    hours = timedelta(hours=3)
    whole = highest_cost(offers, hours, None, machines=5)
    assert whole is not None
    # All that were offered may be rented, and nothing dearer.
    assert highest_price(offers, hours, whole, machines=5) == max(listed)
    half = highest_price(offers, hours, whole / 2, machines=5)
    assert half is not None
    assert float(half) == pytest.approx(float(max(listed)) / 2, rel=0.01)
    assert highest_price([], hours, whole, machines=5) is None


def test_profile_of_an_account_is_the_one_that_is_shown(user: User) -> None:
    user.write('account = "work"\n[accounts.work]\ntoken_file = "work"\nprofile = "work.toml"\n')
    (user.folder / "work.toml").write_text("page_size = 7\n")
    (user.folder / "other.toml").write_text("page_size = 8\n")

    def shown(*words: str, **variables: str) -> tuple[int, str | None]:
        done = user.run("profile", "show", *words, "-o", "json", **variables)
        (row,) = [row for row in done.json if row["name"] == "page_size"]
        return row["value"], row["file"]

    assert shown() == (7, str(user.folder / "work.toml"))
    other = str(user.folder / "other.toml")
    assert shown(NETMIND_RENTGPU_PROFILE=other) == shown("--profile", other) == (8, other)
    assert shown("--account", "work", NETMIND_RENTGPU_PROFILE=other) == (7, str(user.folder / "work.toml"))
