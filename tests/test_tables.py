"""Tables, and what a notebook shows of a command's result."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest

from netmind_rentgpu import AsyncRentGPU, Auth, CommandResult, Container, Machine, Offer, Page, RentalRecord
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.tables import Table


class Reader(HTMLParser):
    """Reads the cells of a table, and fails where a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data


def cells(html: str) -> list[str]:
    """Return the texts of all cells, those of the head first."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader.cells


def html_of(value: Any) -> str:
    """Return what a notebook shows."""
    html: str = value._repr_html_()
    return html


MACHINE = Machine(node_name="n<1>", gpu_name="RTX", gpu_count=8, price=Decimal("0.50"), labels=("a", "b&c"))

OFFER = Offer(machine=MACHINE, gpus=2, hourly_price=Decimal(1), currency="USD")
MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
RECORD = RentalRecord(
    name="rg-1",
    stage="ready",
    node_name="n",
    gpus=1,
    hourly_price=Decimal("0.5"),
    intended_at=MOMENT,
    expires_at=None,
    certain_at=MOMENT,
)


def test_table_has_a_column_for_each_stated_field() -> None:
    table = Table([MACHINE, Machine(node_name="n2", region="US")])
    assert cells(html_of(table)) == [
        *("node_name", "gpu_name", "gpu_count", "price", "labels", "region"),
        *("n<1>", "RTX", "8", "0.50", "a, b&c", ""),
        *("n2", "", "", "", "", "US"),
    ]
    assert "2 rows" in html_of(table)


def test_table_is_a_list() -> None:
    table = Table([MACHINE])
    assert table == [MACHINE]
    assert repr(table) == repr([MACHINE])
    for other in (copy.copy(table), pickle.loads(pickle.dumps(table))):
        assert other == table
        assert "RTX" in html_of(other)
    assert cells(html_of(Table[Machine]())) == []


def test_long_table_is_cut() -> None:
    table = Table(Machine(node_name=f"n{number}") for number in range(1103))
    assert cells(html_of(table[:2]))[-1] == "n1"
    assert (type(table[5:]), table[-1].node_name, len(table[::2])) == (Table, "n1102", 552)
    assert len(cells(html_of(table))) == 101
    assert "and 1,003 more" in html_of(table)


def test_table_shows_no_secret_and_no_control_character() -> None:
    html = html_of(Table([Auth(id=1, value="canary-1"), Auth(id=2, value="canary-2", extra={"value": "canary-3"})]))
    assert "canary" not in html
    assert "***" in html
    assert "\x1b" not in html_of(Table([Container(id=1, name="\x1b[31m<script>")]))
    assert "<script>" not in html_of(Table([Container(id=1, name="<script>")]))


def test_page_offers_and_records_show_as_tables() -> None:
    assert cells(html_of(Page((Container(id=3, name="c"),)))) == ["id", "name", "3", "c"]
    assert cells(html_of(Table([OFFER])))[:4] == ["gpus", "hourly_price", "currency", "node_name"]
    assert cells(html_of(Table([RECORD])))[:2] == ["name", "stage"]


def test_offer_and_record_keep_decimal_and_datetime_unless_json() -> None:
    assert OFFER.to_dict()["hourly_price"] == Decimal(1)
    assert OFFER.to_dict(json=True) == {
        "gpus": 2,
        "hourly_price": "1",
        "currency": "USD",
        **MACHINE.to_dict(json=True),
    }
    assert RECORD.to_dict()["intended_at"] == MOMENT
    assert RECORD.to_dict(json=True)["intended_at"] == "2026-11-01T00:00:00+00:00"
    assert RECORD.to_dict(json=True)["hourly_price"] == "0.5"


RESULT = CommandResult(command="ls <dir>", exit_status=2, stdout="a&b\n", stderr="no \x1b[31mfile")


def test_result_prints_as_its_output() -> None:
    assert str(RESULT) == f"{RESULT}" == "a&b\n"
    assert "a&b" not in repr(RESULT)


@pytest.mark.parametrize(
    ("result", "end"),
    [
        (RESULT, "exit status 2"),
        (attrs.evolve(RESULT, exit_status=None, exit_signal="KILL"), "ended by signal KILL"),
        (attrs.evolve(RESULT, exit_status=None), "its end was not seen"),
        (attrs.evolve(RESULT, truncated=True), "the output was longer"),
    ],
)
def test_notebook_shows_both_outputs_and_the_end_of_a_command(result: CommandResult, end: str) -> None:
    html = html_of(result)
    assert cells(html) == []
    assert end in html
    assert "ls &lt;dir&gt;" in html
    assert ">a&amp;b\n</pre>" in html
    assert ">no \\x1b[31mfile</pre>" in html


async def test_lists_that_are_returned_are_tables(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    machines = await gpu.machines.list()
    assert "gpu_count" in cells(html_of(machines))
    assert all(type(machine.gpu_count) is int and type(machine.cpu_count) is int for machine in machines)
    assert "hourly_price" in cells(html_of(await gpu.offers()))
    assert html_of(await gpu.rentals.list())
    assert "image_name" in cells(html_of(await gpu.images.list()))


def test_notebook_shows_the_last_update_of_a_progress_bar() -> None:
    bar = attrs.evolve(RESULT, stdout="\r 10%\r 20%\r100%\r\ndone\r\n", stderr="")
    assert ">100%\ndone\n</pre>" in html_of(bar)
