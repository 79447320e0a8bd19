"""A replica's life, a transition at a time and without an engine."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.changes import Event, Life, decide
from tests.cases import cases

ONE, TWO = frozenset({0}), frozenset({0, 1})
SERVES, GONE = Life(), Life(is_gone=True)
HANGS = Life(num_hangs=2, broken=ONE)
SHRUNK = Life(lost=ONE, broken=ONE)
FREE = Life(is_held=False, is_gone=True, is_ready=False)
STARTS = FREE._replace(is_held=True)
DRAINS = Life(is_held=False, is_draining=True)
LEAVES = Life(announced=frozenset({(3,)}), evacuates=True, is_draining=True)


@pytest.mark.parametrize(
    ("life", "event", "goes_on", "kind", "changed"),
    [
        (SERVES, "fails", True, "hangs", {"num_hangs": 1}),
        (HANGS, "fails", True, None, {"num_hangs": 3}),
        (HANGS, "noticed", False, "stops", {"num_hangs": 0, "is_gone": True}),
        (HANGS, "noticed", True, "shrinks", {"num_hangs": 0, "lost": ONE}),
        (HANGS._replace(broken=frozenset()), "noticed", True, None, {"num_hangs": 0}),
        (HANGS._replace(broken=frozenset()), "works", True, None, {}),
        (SHRUNK._replace(broken=TWO), "noticed", True, "shrinks", {"lost": TWO}),
        (SHRUNK._replace(broken=TWO), "noticed", False, "stops", {"is_gone": True}),
        (SHRUNK._replace(broken=frozenset()), "works", True, "grows", {"lost": frozenset()}),
        (SHRUNK, "works", True, None, {}),
        (GONE, "works", True, "starts", {}),
        (GONE._replace(broken=ONE), "works", True, None, {}),
        (GONE._replace(is_ready=False), "works", True, None, {}),
        (SERVES, "announced", True, "evacuates", LEAVES._asdict()),
        (GONE, "announced", True, None, {"announced": LEAVES.announced}),
        (
            SERVES._replace(is_draining=True),
            "announced",
            True,
            None,
            {"announced": frozenset({(3,)})},
        ),
        (LEAVES, "noticed", True, None, SERVES._asdict()),
        (GONE._replace(announced=LEAVES.announced), "begins", True, "evacuates", {}),
        (SERVES, "begins", True, None, {}),
        (FREE, "launched", True, "launches", {"is_held": True}),
        (STARTS, "started", True, None, SERVES._asdict()),
        (STARTS._replace(broken=ONE), "started", True, "stops", {"is_ready": True}),
        (
            STARTS._replace(announced=LEAVES.announced),
            "started",
            True,
            "evacuates",
            LEAVES._asdict(),
        ),
        (SERVES, "surplus", True, "drains", {"is_held": False, "is_draining": True}),
        (LEAVES, "surplus", True, "drains", {"is_held": False, "evacuates": False}),
        (SERVES._replace(is_empty=True), "surplus", True, "leaves", FREE._asdict()),
        (GONE, "surplus", True, "leaves", FREE._asdict()),
        (STARTS, "surplus", True, "leaves", FREE._asdict()),
        (DRAINS, "drained", True, "leaves", FREE._asdict()),
        (LEAVES, "drained", True, None, {}),
        (SERVES, "drained", True, None, {}),
    ],
)
def test_an_event_makes_of_a_replica(life, event, goes_on, kind, changed):
    found, does = decide(life, event, (3,), goes_on=goes_on)
    assert does == kind
    if event != "begins":
        assert found._replace(is_empty=False) == life._replace(**changed)._replace(is_empty=False)


@cases(200)
@given(
    life=st.builds(
        Life,
        is_held=st.booleans(),
        is_empty=st.booleans(),
        is_gone=st.booleans(),
        is_ready=st.booleans(),
        is_draining=st.booleans(),
        broken=st.frozensets(st.integers(0, 3)),
        lost=st.frozensets(st.integers(0, 3)),
        num_hangs=st.integers(0, 2),
        announced=st.frozensets(st.tuples(st.integers(0, 2))),
    ),
    events=st.lists(
        st.tuples(st.sampled_from(get_args(Event)), st.tuples(st.integers(0, 2)), st.booleans()),
        max_size=12,
    ),
)
def test_no_event_leads_out_of_what_a_replica_can_be(life, events):
    life = life._replace(evacuates=life.is_draining and bool(life.announced))
    for event, gpus, goes_on in events:
        if event in ("launched", "started") and not life.is_gone:
            continue
        before = life
        life, kind = decide(before, event, gpus, goes_on=goes_on)
        assert not life.evacuates or (life.is_draining and life.announced)
        if kind == "starts":
            assert before.is_gone
            assert before.is_ready
            assert not before.broken
            life = life._replace(is_gone=False)
        if kind == "leaves":
            assert life.is_gone
            assert not any((life.is_ready, life.is_draining, life.evacuates))
        if event in ("started", "begins"):
            assert life.is_gone == (kind == "stops")
        elif kind in ("shrinks", "grows", "stops"):
            assert not before.is_gone
            assert before.broken != before.lost
            assert life.is_gone == (kind == "stops")
            assert kind != "shrinks" or (goes_on and life.lost - before.lost)
            assert kind != "grows" or life.lost < before.lost
        if event == "noticed":
            assert not life.num_hangs
            assert gpus not in life.announced
