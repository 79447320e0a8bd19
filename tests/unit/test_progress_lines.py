"""What long work says on a pipe: what of how many is done, how long the rest takes, and a line at
least every ten seconds, by a clock that a test moves.
"""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cli import console
from simulator.cli.console import EVERY_S, Lines, keep_saying


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def lines_of(unit="deployments"):
    said, clock = [], Clock()
    return Lines(unit, "reading", said.append, clock), said, clock


def test_a_part_says_what_of_how_many_is_done_and_how_long_is_left():
    lines, said, clock = lines_of()
    lines("screening", 0, 9)
    clock.now_s += 15.0
    lines("screening", 3, 9)
    lines.say_if_due()
    assert said == [
        "screening: 9 deployments",
        "screening: 3 of 9 deployments, 15 s so far, about 30 s left",
    ]


@given(st.lists(st.floats(0.1, 4.0), min_size=1, max_size=60))
def test_silence_is_never_longer_than_ten_seconds_and_a_look(waits):
    lines, said, clock = lines_of()
    lines("work", 0, len(waits))
    last_s = clock.now_s
    for done, wait_s in enumerate(waits, 1):
        clock.now_s += wait_s
        before = len(said)
        lines("work", done, len(waits))
        lines.say_if_due()
        assert clock.now_s - last_s < EVERY_S + 4.0
        if len(said) > before:
            assert clock.now_s - last_s >= EVERY_S
            last_s = clock.now_s
    assert len(said) - 1 <= sum(waits) / EVERY_S


def test_the_best_is_said_when_it_changes():
    lines, said, _ = lines_of()
    for done, best in enumerate(["", "a", "a", "", "b"]):
        lines("work", done, 5, best)
    assert said[1:] == ["best so far: a", "best so far: b"]


def test_work_that_says_nothing_is_spoken_for(monkeypatch):
    monkeypatch.setattr(console, "_GLANCE_S", 0.001)
    spoken = threading.Event()
    lines = Lines("", "waiting", lambda _: spoken.set(), iter(range(0, 1000, 20)).__next__)
    with keep_saying(lines):
        assert spoken.wait(30)
    assert not [one for one in threading.enumerate() if one.name == "says progress"]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_nobody_speaks_when_the_work_is_over(is_stopped, capsys):
    try:
        with console.progress("steps", "reading") as tick:
            tick("training", 0, 40)
            if is_stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not [one for one in threading.enumerate() if one.name == "says progress"]
    assert capsys.readouterr().err == "training: 40 steps\n"
