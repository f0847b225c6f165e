"""Errors, logs and printed lines write out the control characters that a service or a server has sent."""

from __future__ import annotations

import io
import logging
import pickle
import traceback
from typing import Any

import attrs
import pytest
from hostile import Hostile, answer
from rich.console import Console

from netmind_rentgpu import APIStatusError, AsyncRentGPU, Machine, Retries, SSHError
from netmind_rentgpu.cli.demo import Demo
from netmind_rentgpu.concurrency.exit_hooks import warn_on_stderr_once
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.errors import MachineRefusal
from netmind_rentgpu.escaping import escaped

# An escape sequence, an 8-bit one, a bell, a carriage return, an override of the writing direction, half a character.
EVIL = "\x1b]0;title\x07\x9b31mred\rover\u202egnp\u2066\u200f\ud800"
SHOWN = r"\x1b]0;title\x07\x9b31mred\rover\u202egnp\u2066\u200f\ud800"


def test_text_for_a_terminal_has_no_control_but_newline_and_tab() -> None:
    assert escaped(EVIL) == SHOWN
    assert (
        escaped("line\nand\ttab, caf\u00e9, \U0001f600, \u05e9\u05dc\u05d5\u05dd")
        == "line\nand\ttab, caf\u00e9, \U0001f600, \u05e9\u05dc\u05d5\u05dd"
    )
    for code in [*range(0x20), 0x7F, *range(0x80, 0xA0)]:
        assert (escaped(chr(code)) == chr(code)) is (chr(code) in "\n\t")


async def test_error_shows_the_text_of_the_service_escaped_and_keeps_it_raw() -> None:
    said = EVIL[:-1]
    async with (
        Hostile([answer({"detail": said}, 400)]) as server,
        AsyncRentGPU("token", base_url=server.url, retries=Retries(max_attempts=1)) as gpu,
    ):
        with pytest.raises(APIStatusError) as caught:
            await gpu.containers.get(1)
    error = caught.value
    assert SHOWN[:-6].replace("\\r", " ") in str(error)
    assert error.message == said.replace("\r", " ")
    assert error.body == {"detail": said}
    for shown in (str(error), str(pickle.loads(pickle.dumps(error))), "".join(traceback.format_exception(error))):
        assert escaped(shown) == shown


def test_every_message_and_the_machines_in_it_are_escaped() -> None:
    error = SSHError(f"no {EVIL}", stage="connection")
    assert str(error) == f"no {SHOWN}"
    assert error.args == (f"no {EVIL}",)
    refusal = MachineRefusal(machine=Machine(node_name=EVIL), error=error)
    assert str(refusal) == f"{SHOWN}: no {SHOWN}"


def test_log_is_escaped(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("netmind_rentgpu")
    logger.warning("%s is 100%% %s", EVIL, {"a": 1})
    logger.warning("100%% of %d", 5)
    assert [record.getMessage() for record in caplog.records] == [f"{SHOWN} is 100% {{'a': 1}}", "100% of 5"]


def test_last_words_on_stderr_are_escaped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("netmind_rentgpu")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])
    warn_on_stderr_once(EVIL)
    assert capsys.readouterr().err == f"netmind_rentgpu: {SHOWN}\n"


def test_demo_shows_what_the_service_says_escaped() -> None:
    written = io.StringIO()
    demo = Demo(Console(file=written, force_terminal=True, width=200, highlight=False))
    machine = Machine(node_name=EVIL[:-1], gpu_name="[red]x", region="\x9bU")
    demo._show_machines([machine])
    demo._result(f"container {EVIL}")
    shown = written.getvalue()
    for evil in ("\x1b]0", "\x07", "\x9b", "\r", "\u202e", "\u2066", "\ud800"):
        assert evil not in shown
    assert r"\x1b]0;title" in shown
    assert "[red]x" in shown


async def test_emulator_escapes_the_names_of_what_is_left() -> None:
    async with Emulator(seed=7) as emulator, AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
        auth: Any = await gpu.auths.create("a-password")
        machine = next(machine for machine in await gpu.machines.list() if machine.gpu_count)
        container = await gpu.containers.create(
            name=EVIL[:-1], auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=0
        )
        with pytest.raises(AssertionError) as caught:
            emulator.assert_nothing_rented()
        assert escaped(str(caught.value)) == str(caught.value)
        assert attrs.asdict(container)["name"] == EVIL[:-1]
        await gpu.containers.delete(container.id)
