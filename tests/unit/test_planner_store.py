"""Findings on disk are read back as they were, or not at all, whoever else writes, is killed, or
damages the file; and a disk may be full.
"""

import json
import math
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from simulator.base.caches import DATABASE
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.screen import Candidate
from simulator.planner.space import ReplicaShape
from simulator.planner.store import STORED_EVALUATION, Store, key_of
from simulator.planner.trial import Outcome
from tests.findings_database import query, read_findings

SHAPE = ReplicaShape(0, 0, 1, 1, 1, "", "bf16", 0, "none")
OPTION = Candidate(SHAPE, 2048, None, 4, 0, 10.0, 4, 4, 0.01, 0.1)
FINDING = Evaluation(
    OPTION,
    ClusterSize(4, 4),
    Outcome({"tpot_s.p90": 0.5}, {"tpot_s.p90": 0.01}, 1.0, math.nan),
    40.0,
    tried=((ClusterSize(4, 4), 0.5),),
)
JSON = json.loads(STORED_EVALUATION.dump_json(FINDING))
OUTCOME = FINDING._fields.index("outcome")
DAMAGED = {
    "cut short": json.dumps(JSON)[:-5],
    "no evaluation": "[1, 2]",
    "a field less": json.dumps(JSON[: OUTCOME + 1]),
    "a field more": json.dumps([*JSON, "red"]),
    "a text for a number": json.dumps([JSON[0], [4, "2", 0], *JSON[2:]]),
    "an outcome of another shape": json.dumps(
        [*JSON[:OUTCOME], {"ratios": {"backlog": 0.5}}, *JSON[OUTCOME + 1 :]]
    ),
    "an outcome of no target": json.dumps(
        [*JSON[:OUTCOME], [{}, {}, *JSON[OUTCOME][2:]], *JSON[OUTCOME + 1 :]]
    ),
    "not UTF-8": b"\xff{}",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_was_kept_in_another_shape_is_done_again(tmp_path, damage):
    store, key = Store(tmp_path), key_of("x")
    store.put(key, FINDING, STORED_EVALUATION)
    found = store.get(key, STORED_EVALUATION)
    assert STORED_EVALUATION.dump_json(found) == STORED_EVALUATION.dump_json(FINDING)
    query(tmp_path, "UPDATE findings SET value = ?", DAMAGED[damage])
    assert store.get(key, STORED_EVALUATION) is None


PAGE = b"\xa5" * 4096


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: PAGE,
        lambda whole: whole[:4096] + PAGE * (len(whole) // 4096 - 1),
        lambda whole: whole[: len(whole) // 2 // 4096 * 4096],
    ],
    ids=["no database", "pages overwritten", "cut short"],
)
def test_a_damaged_database_is_set_aside_and_said_once(tmp_path, damage):
    store, file = Store(tmp_path), tmp_path / DATABASE
    for n in range(50):
        store.put(key_of(n), FINDING, STORED_EVALUATION)
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match=f"{DATABASE} is damaged and was set aside as") as said:
        assert store.get(key_of(1), STORED_EVALUATION) is None
    assert len(said) == 1
    assert (tmp_path / f"{DATABASE}.damaged").read_bytes() == damaged
    store.put(key_of(1), FINDING, STORED_EVALUATION)
    assert store.get(key_of(1), STORED_EVALUATION) is not None
    assert not store.has_failed


def test_a_damaged_database_does_not_cost_what_is_written_next(tmp_path):
    (tmp_path / DATABASE).write_bytes(b"\xa5" * 4096)
    with pytest.warns(RuntimeWarning, match="was set aside"):
        Store(tmp_path).put(key_of("x"), FINDING, STORED_EVALUATION)
    assert list(read_findings(tmp_path)) == [key_of("x")]


WRITER = """
import sys, hashlib
from pathlib import Path
from pydantic import TypeAdapter
from simulator.planner.store import Store
store, shape = Store(Path(sys.argv[1])), TypeAdapter(list[str])
for n in range(int(sys.argv[3])):
    key = hashlib.sha256(f"{sys.argv[2]} {n}".encode()).hexdigest()
    store.put(key, [key] * (n % 200), shape)
    print(key, flush=True)
    assert store.get(key, shape) == [key] * (n % 200)
assert not store.has_failed
"""


def start_writers(folder, count, num_findings):
    """Processes that each keep findings whose value follows from their key, and print the keys."""
    arguments = ["-W", "error", "-c", WRITER, str(folder)]
    return [
        subprocess.Popen(
            [sys.executable, *arguments, str(n), str(num_findings)], stdout=subprocess.PIPE
        )
        for n in range(count)
    ]


def check_whole(folder):
    """Digests of findings, all of which are as they were written."""
    assert query(folder, "PRAGMA integrity_check") == [("ok",)]
    found = read_findings(folder)
    for key, value in found.items():
        assert set(json.loads(value)) <= {key}
    return set(found)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    writers = start_writers(tmp_path, 4, 100)
    said = [set(writer.communicate()[0].decode().split()) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert [len(keys) for keys in said] == [100] * 4
    assert check_whole(tmp_path) == set().union(*said)


def test_killed_processes_lose_only_what_they_were_writing(tmp_path):
    """Each may have written one finding that it did not get to say."""
    writers = start_writers(tmp_path, 3, 10**6)
    first = [writer.stdout.readline() for writer in writers]
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    rest = [writer.communicate()[0] for writer in writers]
    # A line that a killed process had not ended was not said.
    texts = [(line + more).decode() for line, more in zip(first, rest, strict=True)]
    said = {line for text in texts for line in text.split("\n")[:-1]}
    found = check_whole(tmp_path)
    assert said <= found
    assert len(found) <= len(said) + len(writers)
    store = Store(tmp_path)
    store.put(key_of("x"), FINDING, STORED_EVALUATION)
    assert store.get(key_of("x"), STORED_EVALUATION) is not None


def test_the_longest_unused_half_goes_where_there_is_too_much(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for n in range(40):
        store.put(key_of(n), FINDING, STORED_EVALUATION)
    query(tmp_path, "UPDATE findings SET last_used_s = rowid")
    for n in range(10):
        assert store.get(key_of(n), STORED_EVALUATION) is not None  # is used now
    monkeypatch.setattr("simulator.planner.store._MOST_BYTES", 8192)
    store.put(key_of("x"), FINDING, STORED_EVALUATION)
    assert set(read_findings(tmp_path)) == {key_of(n) for n in [*range(10), *range(30, 40), "x"]}


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
        pytest.warns(RuntimeWarning, match=r"cannot be written any more \(disk I/O") as said,
    ):
        store.put(key_of("x"), FINDING, STORED_EVALUATION)
    with full_disk():
        Store(tmp_path).put(key_of("y"), FINDING, STORED_EVALUATION)  # a warning would be an error
    assert len(said) == 1
    assert store.has_failed
    assert store.get(key_of("x"), STORED_EVALUATION) is None
    assert read_findings(tmp_path) == {}
