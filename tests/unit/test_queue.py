"""Queues against sorted lists, over any sequence of verbs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.queue import find_another, join, join_again, list_requests, pop, remove
from simulator.engine.state import Queue, Request, make_records
from tests.cases import cases

COUNT = 12
verbs = st.lists(
    st.tuples(st.sampled_from(["join", "again", "pop", "remove"]), st.integers(0, COUNT - 1)),
    max_size=60,
)


@pytest.mark.parametrize("is_ordered", [False, True])
@cases(150)
@given(done=verbs, keys=st.lists(st.integers(0, 4), min_size=COUNT, max_size=COUNT))
def test_a_queue_is_a_list_in_order(is_ordered, done, keys):
    (queue,), rows = make_records(Queue, 1), make_records(Request, COUNT)
    queue.is_ordered, rows.key = is_ordered, keys
    rows.following = rows.child = rows.before = -1
    known: list[int] = []
    for verb, r in done:
        if verb in ("join", "again") and r not in known:
            (join if verb == "join" else join_again)(queue, rows, r)
            known.insert(0 if verb == "again" else len(known), r)
        elif verb == "pop" and known:
            assert pop(queue, rows) == known.pop(0)
        elif verb == "remove":
            assert remove(queue, rows, r) == (r in known)
            known = [one for one in known if one != r]
        if is_ordered:
            known.sort(key=lambda one: (keys[one], one))
        assert list_requests(queue, rows).tolist() == known
        assert walk(queue, rows) == set(known)


def walk(queue, rows):
    """All that a walk over the queue meets, each once."""
    met, other = [], int(queue.first)
    while len(met) < queue.count:
        met.append(other)
        other = find_another(queue, rows, other)
    assert not queue.is_ordered or other == -1 or not queue.count
    assert len(set(met)) == len(met)
    return set(met)


def test_many_that_join_in_reverse_leave_in_order():
    count = 10_000
    (queue,), rows = make_records(Queue, 1), make_records(Request, count)
    queue.is_ordered = True
    rows.key = np.arange(count)[::-1]
    for r in range(count):
        join(queue, rows, r)
    assert [pop(queue, rows) for _ in range(count)] == list(range(count - 1, -1, -1))
