"""The page of ``make bench``, of figures that are made up."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.history import append_history, read_history
from tests.benchmarks.page import render, tell_headline
from tests.benchmarks.rows import Bench, Growth, Row, tell_value

MADE = {
    "command": "python -m tests.benchmarks",
    "effort": "full",
    "started": "2026-01-01T00:00:00+00:00",
    "wall_s": 1.0,
    "versions": {"numpy": "2.0.0"},
    "revision": "0123abc",
    "machine": {
        "processor": "made up",
        "cores": 2,
        "memory_bytes": 8e9,
        "system": "Linux",
        "load_average_1_min": 0.1,
    },
}


NOTHING = read_history(Path("nowhere"), Bench(MADE))
ROWS = (
    Row("serving", "dense", "requests", "1/s", 5e5, "higher", "before", 1e5, 4.0, "ratio", 5),
    Row("serving", "dense", "a step", "ns", 1234.5, rounds=5, note="40,000 steps"),
    Row("steps", "rank, EP 64", "events of a step", "event", 8782.0, note="exact"),
    Row("whole_run", "moesim run", "peak memory", "B", 1.03e9, target=1.2e9),
    Row("whole_run", "moesim run", "memory of a request", "B/request", 700.0),
    Row("start_up", "slow <one>", "CPU time", "s", 3.0, target=2.0),
    Row("start_up", "another", "CPU time", "s", None, target=2.0, note="could not be run"),
    Row("peer", "one replica", "requests", "1/s", None, "higher", "a peer", note="not installed"),
)
GROWTHS = (
    Growth("requests", "engine at step", (10_000, 100_000, 1_000_000), (0.02, 0.2, 2.0), 3),
    Growth("ranks", "table of prices", (8, 16, 32), (0.4, 0.8, 1.5)),
    Growth("ranks", "a step at rank", (8, 16, 32), (0.01, 0.02, 0.05), 3),
    Growth("layers", "a step of the engine", (8, 64), (2e-6, 2e-6), 3),
)


def make_bench() -> Bench:
    made = Bench(MADE)
    for found in (*ROWS, *GROWTHS):
        made.add(found)
    return made


@pytest.fixture(scope="module")
def bench() -> Bench:
    return make_bench()


def test_the_page_has_every_row(bench):
    shown = html.unescape(re.sub(r"<[^>]*>", "\n", render(bench, NOTHING)))
    assert len(bench.rows) == len(ROWS) + len(GROWTHS)
    for row in bench.rows:
        assert f"\n{row.name}\n" in shown
        assert f"\n{tell_value(row.value, row.unit)}\n" in shown
        assert row.note in shown


def test_the_page_says_what_is_missed_and_where(bench):
    page = render(bench, NOTHING)
    assert tell_headline(bench) == "2 of 3 targets that could be judged are met."
    assert page.count("Missed: ") == 1
    assert "Missed: slow &lt;one&gt;, CPU time: 3 s; asked ≤ 2 s." in page
    assert "table of prices: exponent 0.95; a step at rank: exponent 1.16." in page
    assert "made up" in page


@pytest.mark.parametrize("load", [0.1, 12.6])
def test_a_busy_machine_is_told(load):
    machine: dict[str, Any] = {**MADE["machine"], "load_average_1_min": load}
    page = render(Bench({**MADE, "machine": machine}, [ROWS[1]]), NOTHING)
    assert ("Other programs ran" in page) is (load > 1)


def test_figures_of_earlier_calls_on_this_processor_are_drawn(bench, tmp_path):
    history = tmp_path / "new" / "history.jsonl"
    append_history(bench, history)
    assert "Over revisions" not in render(bench, read_history(history, bench))
    later = Bench(
        {**MADE, "started": "2026-02-01T00:00:00+00:00", "revision": "4567def"}, bench.rows
    )
    append_history(later, history)
    elsewhere = Bench({**MADE, "machine": {**MADE["machine"], "processor": "another"}}, bench.rows)
    append_history(elsewhere, history)
    found = read_history(history, bench)
    assert list(found["revision"].unique()) == ["0123abc", "4567def"]
    assert len(found) == 2 * sum(row.value is not None for row in bench.rows)
    shown = html.unescape(re.sub(r"<[^>]*>", "\n", render(bench, found)))
    assert "Over revisions" in shown
    assert "\nslow <one>: CPU time\n" in shown
