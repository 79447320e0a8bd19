"""What a preempted request finds again of its blocks, against a line of free blocks."""

from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.cache import (
    allocate_blocks,
    count_available,
    count_kept,
    keep_order,
    reclaim_blocks,
    release,
)
from simulator.engine.queue import join, remove
from simulator.engine.state import Limits, start_ranks, start_requests
from simulator.policies.scheduling import Rules
from simulator.workload.traces import RequestTrace
from tests.cases import cases

NUM_REQUESTS, NUM_BLOCKS = 5, 24


class Line:
    """The line of free blocks as vLLM keeps it: each block knows what it held last."""

    def __init__(self, partial_first):
        self.free = deque((None, i) for i in range(NUM_BLOCKS))
        self.partial_first = partial_first

    def give_back(self, r, count, full):
        """The last of a sequence first; only full blocks can be told apart."""
        own = [(r, i) if i < full else (None, i) for i in reversed(range(count))]
        first = [block for block in own if self.partial_first and block[0] is None]
        self.free.extendleft(first)
        self.free.extend(block for block in own if block not in first)

    def take(self, count):
        for _ in range(count):
            self.free.popleft()

    def find(self, r):
        """Leading blocks of ``r`` that are still in line, taken out of it."""
        found = 0
        while (r, found) in self.free:
            self.free.remove((r, found))
            found += 1
        return found

    def forget(self, r):
        """Nobody looks for these any more; who finishes never does."""
        self.free = deque((-1, i) if owner == r else (owner, i) for owner, i in self.free)


@cases(200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, NUM_REQUESTS - 1), st.booleans(), st.integers(1, 9), st.integers(0, 3)
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_what_is_found_again_is_what_a_line_of_blocks_still_holds(moves, partial_first):
    """A request that runs is preempted or ends; one that does not takes blocks, what it finds of
    its own first.
    """
    trace = RequestTrace(
        arrival_s=np.zeros(NUM_REQUESTS),
        num_input=np.full(NUM_REQUESTS, 100),
        num_output=np.full(NUM_REQUESTS, 10),
        provenance="made up",
    )
    rules = Rules(64, 8, True, True, finds_full=True, frees_partial_first=partial_first)
    limits = Limits(rules, 4, 0, 0, 0)
    requests = start_requests(trace, with_prefixes=False)
    ranks, line = start_ranks(1, 8, NUM_BLOCKS, 0), Line(partial_first)
    for r, ends, count, unfilled in moves:
        request = requests.each[r]
        if request.blocks:
            held = int(request.blocks)
            request.computed = max(0, held * limits.block_tokens - unfilled)
            if not ends:
                keep_order(requests, ranks, 0, r, int(request.computed), limits)
                request.preemptions = 1
                join(ranks.each[0].waiting, requests.each, r)
            release(requests, ranks, 0, r, limits)
            line.give_back(r, held, request.computed // limits.block_tokens)
            if ends:
                line.forget(r)
            continue
        kept = int(count_kept(requests, ranks, r, 0, 0, limits))
        if max(count, kept) > count_available(ranks, 0, limits):
            continue
        remove(ranks.each[0].waiting, requests.each, r)
        reclaim_blocks(requests, ranks, r, 0, kept)
        assert kept == line.find(r)
        line.forget(r)
        allocate_blocks(ranks, 0, max(count, kept) - kept, limits)
        line.take(max(count, kept) - kept)
        request.blocks = max(count, kept)
        assert count_available(ranks, 0, limits) == len(line.free)
