"""What a search keeps on disk: read back as it was, or not at all; and a disk that takes nothing
more.
"""

import json
import math
import resource
from contextlib import contextmanager

import pytest

from simulator.planner.explore import Finding, Sized
from simulator.planner.kept import KEPT_FINDING, as_json, finding_of
from simulator.planner.screen import Option
from simulator.planner.space import Design
from simulator.planner.store import Store, key_of
from simulator.planner.trial import Outcome

OPTION = Option(
    Design(0, 0, 1, 1, 1, "", "bf16", 0, "none"), 2048, None, 4, 0, 10.0, 10.0, 4, 4, 0.01, 0.1
)
FINDING = Finding(
    OPTION,
    Sized(4, 4),
    Outcome({"tpot_s.p90": 0.5}, {"tpot_s.p90": 0.01}, 1.0, math.nan),
    40.0,
    4,
    tried=((Sized(4, 4), 0.5),),
)
KEPT = as_json(FINDING)
DAMAGED = {
    "cut short": json.dumps(KEPT)[:-5],
    "no object": "[1, 2]",
    "a key less": json.dumps({key: KEPT[key] for key in KEPT if key != "risk"}),
    "a key more": json.dumps({**KEPT, "colour": "red"}),
    "a text for a number": json.dumps({**KEPT, "sized": [4, "2", 0]}),
    "an outcome of another shape": json.dumps({**KEPT, "outcome": {"ratios": {"backlog": 0.5}}}),
    "an outcome of no target": json.dumps(
        {**KEPT, "outcome": {**KEPT["outcome"], "ratios": {}, "measured": {}}}
    ),
    "not UTF-8": b"\xff{}",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_was_kept_in_another_shape_is_done_again(tmp_path, damage):
    store, key = Store(tmp_path), key_of("x")
    store.put(key, KEPT)
    found = store.get(key, KEPT_FINDING)
    assert json.dumps(as_json(finding_of(found, OPTION, 1.0))) == json.dumps(KEPT)
    (path,) = (entry for entry in tmp_path.rglob("*") if entry.is_file())
    damaged = DAMAGED[damage]
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    assert store.get(key, KEPT_FINDING) is None


@contextmanager
def full_disk():
    """Files of this process cannot grow, as on a full disk; the system's own refusal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_once_and_costs_only_what_would_have_been_kept(tmp_path):
    store = Store(tmp_path)
    with (
        full_disk(),
        pytest.warns(RuntimeWarning, match=r"cannot be written any more \(File too") as said,
    ):
        store.put(key_of("x"), KEPT)
    with full_disk():
        Store(tmp_path).put(key_of("y"), KEPT)  # a warning would be an error
    assert len(said) == 1
    assert store.has_failed
    assert store.get(key_of("x"), KEPT_FINDING) is None
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == []
