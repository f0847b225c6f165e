"""OpenSSH's client finds containers by the configuration that is printed for it, on the emulator's server and OpenSSH's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import canaries
import openssh
from configured_ssh import ConfiguredSSH

from netmind_rentgpu.cli.ssh_config import config_block, find_host

from .conftest import Site


async def test_openssh_logs_in_with_the_key_that_a_first_login_has_pinned(
    site: Site, state: Path, tmp_path: Path
) -> None:
    client = ConfiguredSSH(tmp_path, openssh.PASSWORD if site.kind == "OpenSSH" else canaries.PASSWORD)
    host = await find_host(site.gpu, site.container, None)
    config = config_block(host, site.container)
    done = await asyncio.to_thread(client.run, config, "mine", "echo in; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\n", "")
    known = Path(host["known_hosts_file"])
    assert known.parent == state.parent / "known_hosts"
    # OpenSSH has added nothing to it.
    assert known.read_text() == f"{host['host_key_alias']} {host['host_key']}\n"
