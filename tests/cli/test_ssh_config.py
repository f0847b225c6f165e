"""`containers ssh-config`: real OpenSSH finds the container by it, and sends the password to no other server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import canaries
import pytest
from command_line import Done, Here, Site
from configured_ssh import ConfiguredSSH

from netmind_rentgpu.emulator import World, dialect

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path) -> ConfiguredSSH:
    return ConfiguredSSH(tmp_path, canaries.PASSWORD)


def create(here: Here, name: str) -> str:
    """Create a container, and return its id."""
    auth = here.run("auths", "ensure", "--password-file", "-", "-o", "json", given=canaries.PASSWORD.encode()).json
    done = here.run(
        *("containers", "create", "--name", name, "--auth", str(auth["id"]), "--machine", "node-se-0012"),
        *("--image", "1", "-o", "json"),
    )
    assert done.code == 0, done.errors
    return str(done.json["id"])


@pytest.fixture
def mine(site: Site, here: Here) -> Iterator[str]:
    """The id of a container with the name `mine`."""
    yield create(here, "mine")
    for charge in site.emulator.running:
        here.run("containers", "delete", str(charge.container_id), "-y")


def started(here: Here, container_id: str) -> str:
    assert here.run("containers", "wait", container_id, "--until", "reachable").code == 0
    return container_id


def config_of(here: Here, *words: str) -> Done:
    done = here.run("containers", "ssh-config", *words)
    assert (done.code, done.errors) == (0, ""), done.errors
    assert canaries.PASSWORD not in done.text
    return done


@pytest.mark.parametrize("host", ["container-1001", "mine"])
def test_openssh_logs_in_by_what_is_printed(here: Here, client: ConfiguredSSH, mine: str, host: str) -> None:
    config = config_of(here, started(here, mine)).text
    done = client.run(config, host, "cat /dev/null; echo in; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "in\n", "")
    assert client.asked.exists()
    assert config.splitlines()[0] == "# Container 1001. The password: rentgpu auths show 1 --reveal"


def test_openssh_sends_no_password_to_a_server_with_another_key(
    here: Here, site: Site, client: ConfiguredSSH, mine: str
) -> None:
    config = config_of(here, started(here, mine)).text
    (known,) = (site.folder / "known_hosts").iterdir()
    assert known.stat().st_mode & 0o077 == 0
    alias, kind, _ = known.read_text().split()
    other = f"{alias} {kind} AAAAC3NzaC1lZDI1NTE5AAAAIJtJ6bFFHIpSDfPRiSV9ASTmU2NXtyyObaPdlJqjhqHR\n"
    known.write_text(other)
    done = client.run(config, "mine", "echo in")
    assert (done.returncode, done.stdout) == (255, "")
    assert "Host key verification failed" in done.stderr
    assert not client.asked.exists()
    # The command writes the key again that the state file has.
    assert client.run(config_of(here, mine).text, "mine", "echo in").stdout == "in\n"
    assert [path.name for path in known.parent.iterdir()] == [alias]


def test_key_is_read_by_one_login_and_pinned(here: Here, site: Site, mine: str) -> None:
    first = config_of(here, started(here, mine)).text
    # No second login is needed, nor a password.
    assert here.run("containers", "stop", mine, "-y").code == 0
    assert here.run("containers", "restart", mine, "-y").code == 0
    started(here, mine)
    assert config_of(here, mine, "--timeout", "20s").text == first
    assert here.run("run", mine, "--", "true").code == 0


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_other_forms_have_the_fields(here: Here, site: Site, mine: str, form: str) -> None:
    text = config_of(here, started(here, mine), "-o", form).text
    for part in ("host_key_alias", "rentgpu-1001-", "ssh-ed25519", str(site.folder / "known_hosts"), "127.0.0.1"):
        assert part in text


def test_several_containers_have_a_block_each(here: Here, client: ConfiguredSSH, mine: str) -> None:
    other = started(here, create(here, "other"))
    config = config_of(here, started(here, mine), other, mine).text
    assert config.count("\nHost ") == 2
    assert "\n\n# Container 1002." in config
    assert client.run(config, "mine", "echo $((20 + 1))").stdout == "21\n"
    assert client.run(config, "container-1002", "echo $((20 + 2))").stdout == "22\n"


@pytest.mark.parametrize("folder", ["a folder", "%h of ~"])
def test_path_with_odd_characters_is_found_by_openssh(
    here: Here, site: Site, client: ConfiguredSSH, mine: str, folder: str
) -> None:
    started(here, mine)
    config = config_of(here, mine, "--state", f"{folder}/state.sqlite3").text
    assert client.run(config, "mine", "echo in").stdout == "in\n"
    assert (site.folder / folder / "known_hosts").is_dir()


@pytest.mark.parametrize("name", ["mine\n  ProxyCommand touch evil", "mine touch", "*", "!mine", "-F", "a\x1b[1m", "é"])
def test_name_that_is_no_plain_word_is_left_out(
    here: Here, site: Site, client: ConfiguredSSH, mine: str, name: str
) -> None:
    other = started(here, create(here, name))
    config = config_of(here, other).text
    assert f"\nHost container-{other}\n" in config
    assert "ProxyCommand" not in config
    assert client.run(config, f"container-{other}", "echo in").stdout == "in\n"
    assert not (site.folder / "evil").exists()
    assert mine


def test_path_that_openssh_cannot_have_is_refused(here: Here, mine: str) -> None:
    done = here.run("containers", "ssh-config", started(here, mine), "--state", 'a"b/state.sqlite3')
    assert (done.code, done.out) == (2, b"")
    assert "OpenSSH's configuration cannot hold the path" in done.errors


@pytest.mark.parametrize("site", [{"boot_seconds": 1000}], indirect=True)
def test_container_without_an_address_is_refused_with_what_to_do(here: Here, mine: str) -> None:
    done = here.run("containers", "ssh-config", mine)
    assert (done.code, done.out) == (1, b"")
    assert f"`rentgpu containers wait {mine}` waits for it" in done.errors
    assert here.run("containers", "ssh-config", "999").code == 66


@pytest.mark.parametrize("site", [{"world": World(optional_fields="absent")}], indirect=True)
def test_password_that_the_service_does_not_show_comes_from_a_file(
    here: Here, site: Site, client: ConfiguredSSH, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No world of the emulator hides it.
    monkeypatch.setitem(dialect._OPTIONAL, "auth", frozenset({"value"}))
    assert here.run("auths", "show", "1", "-o", "json").json["value"] is None
    started(here, mine)
    done = here.run("containers", "ssh-config", mine)
    assert (done.code, done.out) == (1, b"")
    assert "the service does not show the password" in done.errors
    assert "Give the password with --password-file FILE" in done.errors
    wrong = here.run("containers", "ssh-config", mine, "--password-file", "-", given=b"another-password")
    assert (wrong.code, wrong.out) == (74, b"")
    (site.folder / "password").write_text(f"{canaries.PASSWORD}\n")
    config = config_of(here, mine, "--password-file", "password").text
    assert client.run(config, "mine", "echo in").stdout == "in\n"
