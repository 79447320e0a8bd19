"""Batching and KV blocks, step by step, with every invariant checked between the steps. No prices,
no plan: steps take a second.
"""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.engine.batching import complete_step, form_step, is_decode, push
from simulator.engine.state import Limits, start_clock, start_ranks, start_requests
from simulator.workload.traces import RequestTrace
from tests.cases import cases

PREFIX_TOKENS = 8
QUICK = cases(60)


class Asked(NamedTuple):
    arrival_s: int
    num_input: int
    num_output: int
    family: int = 0
    shared: int = 0
    """Leading prefix blocks that all requests of the family have."""


def make_limits(**changes):
    usual = Limits(
        token_budget=64,
        max_sequences=8,
        mixes_phases=True,
        splits_prompts=True,
        block_tokens=4,
        sequence_blocks=0,
        prefix_tokens=0,
        prefix_blocks=0,
        watermark_blocks=0,
    )
    return usual._replace(**changes)


def make_trace(asked):
    """Blocks of a family are numbered from 100 times its number, blocks of a request alone from
    1,000 on; then densely.
    """
    asked = sorted(asked, key=lambda request: request.arrival_s)
    starts, ids = [0], []
    for number, request in enumerate(asked):
        blocks = -(-request.num_input // PREFIX_TOKENS)
        ids += [
            100 * request.family + i if i < request.shared else 1000 * (number + 1) + i
            for i in range(blocks)
        ]
        starts.append(len(ids))
    dense = {block: i for i, block in enumerate(dict.fromkeys(ids))}
    return RequestTrace(
        arrival_s=np.array([request.arrival_s for request in asked], dtype=np.float64),
        num_input=np.array([request.num_input for request in asked]),
        num_output=np.array([request.num_output for request in asked]),
        provenance="made up",
        prefix_block_tokens=PREFIX_TOKENS,
        prefix_starts=np.array(starts),
        prefix_ids=np.array([dense[block] for block in ids]),
    )


def blocks_needed(asked, limits):
    return (
        max(-(-(r.num_input + r.num_output) // limits.block_tokens) for r in asked)
        + limits.sequence_blocks
    )


class Served(NamedTuple):
    requests: object
    clock: object
    steps: list
    """For each step, for each rank: ``(request, new tokens, tokens computed before, whether it
    decodes)``."""


def serve(asked, limits, capacity, num_ranks=1):
    """Serve everything, a step a second, and check the state before and after every step."""
    trace = make_trace(asked)
    requests = start_requests(trace, with_prefixes=limits.prefix_tokens > 0)
    ranks, clock = (
        start_ranks(num_ranks, limits.max_sequences, capacity, int(trace.prefix_ids.max()) + 1),
        start_clock(),
    )
    position, now_s, steps = 0, 0.0, []
    most_steps = (
        100
        + int(trace.arrival_s[-1])
        + len(asked) * int((trace.num_input + trace.num_output).sum())
    )
    while clock.num_finished[0] < len(asked):
        assert len(steps) < most_steps, "no progress"
        while position < len(asked) and trace.arrival_s[position] <= now_s:
            push(requests, ranks, clock, position)
            position += 1
        if form_step(requests, ranks, limits, now_s):
            steps.append(check_step(requests, ranks, limits, now_s))
            check_blocks(requests, ranks, limits)
            complete_step(requests, ranks, limits, clock, now_s + 1)
        else:
            assert clock.num_pushed[0] == clock.num_finished[0], "requests wait and none runs"
        check_blocks(requests, ranks, limits)
        now_s += 1
    check_end(requests, ranks, clock, trace)
    return Served(requests, clock, steps)


def check_step(requests, ranks, limits, now_s):
    found = []
    for d in range(len(ranks.head)):
        count = ranks.num_running[d]
        assert count <= limits.max_sequences
        ids, chunks = ranks.running[d, :count], ranks.chunk[d, :count]
        assert len(set(ids.tolist())) == count
        assert (requests.arrival_s[ids] <= now_s).all()
        assert (chunks >= 0).all()
        rows = [
            (
                int(r),
                int(new),
                int(requests.computed[r]),
                bool(
                    is_decode(
                        new, requests.num_input[r], requests.generated[r], requests.computed[r]
                    )
                ),
            )
            for r, new in zip(ids, chunks, strict=True)
            if new
        ]
        remaining = requests.num_input[ids] + requests.generated[ids] - requests.computed[ids]
        assert (chunks <= remaining).all()
        is_alone = len(rows) == 1 and not limits.splits_prompts
        assert chunks.sum() <= limits.token_budget or is_alone
        if not limits.splits_prompts:
            assert (chunks == remaining)[chunks > 0].all()
        if not limits.mixes_phases:
            assert len({decodes for *_, decodes in rows}) <= 1
        found.append(rows)
    return found


def check_blocks(requests, ranks, limits):
    """Free + held alone + cached = capacity, and what is cached agrees with who holds it."""
    is_running = np.zeros(len(requests.blocks), dtype=bool)
    for d in range(len(ranks.head)):
        ids = ranks.running[d, : ranks.num_running[d]]
        is_running[ids] = True
        held = int(requests.blocks[ids].sum())
        assert (requests.blocks[ids] >= 0).all()
        assert ranks.free_blocks[d] >= 0
        assert (
            ranks.free_blocks[d] + held + ranks.in_cache[d].sum() * limits.prefix_blocks
            == ranks.capacity_blocks[d]
        )
        refs = np.zeros_like(ranks.refs[d])
        for r in ids:
            start = requests.prefix_starts[r]
            np.add.at(refs, requests.prefix_ids[start : start + requests.shared[r]], 1)
        assert np.array_equal(refs, ranks.refs[d])
        assert ranks.in_cache[d][refs > 0].all()
        evictable = set(np.flatnonzero(ranks.in_cache[d] & (refs == 0)).tolist())
        assert set(ring(ranks, d)) == evictable
        assert ranks.num_evictable[d] == len(evictable)
        computed = requests.computed[ids]
        blocks = -(-computed // limits.block_tokens) + limits.sequence_blocks
        assert (requests.blocks[ids] + requests.shared[ids] * limits.prefix_blocks >= blocks).all()
    assert (requests.blocks[~is_running] == 0).all()
    assert (requests.shared[~is_running] == 0).all()


def ring(ranks, d):
    """Evictable blocks from the oldest to the newest; both directions agree."""
    ends = ranks.older.shape[1] - 1
    order, block = [], int(ranks.newer[d, ends])
    while block != ends:
        order.append(block)
        block = int(ranks.newer[d, block])
    backwards, block = [], int(ranks.older[d, ends])
    while block != ends:
        backwards.append(block)
        block = int(ranks.older[d, block])
    assert order == backwards[::-1]
    return order


def check_end(requests, ranks, clock, trace):
    assert np.array_equal(requests.generated, trace.num_output)
    assert clock.gap_counts.sum() == (trace.num_output - 1).sum()
    assert clock.outstanding_tokens[0] == 0
    assert (ranks.num_running == 0).all()
    assert (ranks.num_waiting == 0).all()
    assert (ranks.head == -1).all()
    assert (ranks.tail == -1).all()
    assert (requests.arrival_s <= requests.scheduled_s).all()
    assert (requests.scheduled_s < requests.first_s).all()
    assert (requests.first_s <= requests.finish_s).all()
    assert ((requests.finish_s - requests.first_s) >= requests.num_output - 1).all()
    assert (requests.cached < requests.num_input).all()


traces = st.lists(
    st.builds(
        Asked,
        st.integers(0, 12),
        st.integers(1, 50),
        st.integers(1, 12),
        st.integers(0, 1),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=12,
)
all_limits = st.builds(
    make_limits,
    token_budget=st.integers(1, 40),
    max_sequences=st.integers(1, 6),
    mixes_phases=st.booleans(),
    splits_prompts=st.booleans(),
    block_tokens=st.sampled_from([1, 4, 8]),
    sequence_blocks=st.integers(0, 3),
)


@QUICK
@given(traces, all_limits, st.integers(0, 30), st.integers(1, 3), st.booleans())
def test_nothing_is_lost_and_blocks_are_conserved_however_small_the_cache(
    asked, limits, spare, num_ranks, with_prefixes
):
    if with_prefixes:
        limits = limits._replace(
            prefix_tokens=PREFIX_TOKENS, prefix_blocks=PREFIX_TOKENS // limits.block_tokens
        )
    capacity = blocks_needed(asked, limits) + spare
    serve(asked, limits._replace(watermark_blocks=capacity // 10), capacity, num_ranks)


@QUICK
@given(traces, all_limits)
def test_with_ample_memory_nothing_is_computed_twice(asked, limits):
    served = serve(asked, limits, len(asked) * blocks_needed(asked, limits))
    assert served.requests.preemptions.sum() == 0
    rows = [row for step in served.steps for rank in step for row in rank]
    assert sum(new for _, new, _, decodes in rows if not decodes) == sum(
        request.num_input for request in asked
    )
    assert sum(decodes for *_, decodes in rows) == sum(request.num_output - 1 for request in asked)


@QUICK
@given(traces, all_limits)
def test_tokens_of_a_request_are_computed_in_order_and_once_between_preemptions(asked, limits):
    served = serve(asked, limits, blocks_needed(asked, limits) + 2)
    reached = np.zeros(len(asked), dtype=np.int64)
    restarts = np.zeros(len(asked), dtype=np.int64)
    for step in served.steps:
        for rank in step:
            for r, new, before, _ in rank:
                if before != reached[r]:
                    assert before == 0
                    restarts[r] += 1
                reached[r] = before + new
    assert (restarts <= served.requests.preemptions).all()
    assert np.array_equal(reached, served.requests.num_input + served.requests.num_output - 1)


@pytest.mark.parametrize("mixes_phases", [True, False])
def test_a_request_that_arrives_during_a_step_waits_for_the_next_one(mixes_phases):
    served = serve([Asked(0, 5, 4), Asked(2, 5, 2)], make_limits(mixes_phases=mixes_phases), 100)
    assert served.requests.scheduled_s.tolist() == [0, 2]
    assert served.requests.first_s.tolist() == [1, 3]


def test_a_prompt_larger_than_the_budget_is_cut_into_chunks_beside_decodes():
    served = serve([Asked(0, 4, 6), Asked(1, 130, 1)], make_limits(), 1000)
    assert [(r, new) for step in served.steps for r, new, *_ in step[0]][:7] == [
        *[(0, 4)],
        *[(0, 1), (1, 63)],
        *[(0, 1), (1, 63)],
        *[(0, 1), (1, 4)],
    ]


def test_without_splitting_a_prompt_larger_than_the_budget_has_a_step_alone():
    limits = make_limits(mixes_phases=False, splits_prompts=False)
    served = serve([Asked(0, 4, 6), Asked(1, 130, 2), Asked(1, 10, 2)], limits, 1000)
    assert [step[0] for step in served.steps][1] == [(1, 130, 0, False)]


def test_the_latest_admitted_loses_its_blocks_first_and_comes_back_first():
    # 10 blocks of 4 tokens: the two prompts take 4 each, and growing takes the rest.
    served = serve(
        [Asked(0, 16, 12), Asked(0, 16, 12), Asked(0, 16, 1)], make_limits(max_sequences=3), 10
    )
    assert served.requests.preemptions.tolist() == [0, 1, 0]
    assert served.requests.scheduled_s[2] >= served.requests.finish_s[0]
    back = next(step[0] for step in served.steps[5:] if len(step[0]) > 1)
    assert [(r, before) for r, _, before, _ in back] == [(1, 0), (2, 0)]


def test_an_output_of_one_token_ends_with_the_prompt():
    served = serve([Asked(0, 9, 1)], make_limits(), 3)
    assert len(served.steps) == 1
    assert served.requests.finish_s[0] == served.requests.first_s[0] == 1


def test_requests_are_spread_over_data_parallel_ranks():
    served = serve([Asked(0, 8, 3)] * 9, make_limits(), 100, num_ranks=3)
    assert np.bincount(served.requests.dp_rank).tolist() == [3, 3, 3]


def test_a_chunk_of_one_token_in_the_middle_of_a_recomputation_is_not_a_decode():
    assert not is_decode(new=1, num_input=10, generated=2, computed=5)
    assert is_decode(new=1, num_input=10, generated=2, computed=11)
    assert not is_decode(new=1, num_input=10, generated=0, computed=9)


class BruteForceCache:
    """A prefix cache as a list from the least to the most recently used, serving one request at a
    time.
    """

    def __init__(self, limits, capacity):
        self.limits, self.free, self.unused = limits, capacity, []

    def _take(self, count):
        while self.free < count:
            self.unused.pop(0)
            self.free += self.limits.prefix_blocks
        self.free -= count

    def hits(self, ids, num_input, num_output):
        """Serve a request and return how many of its leading prefix blocks were there."""
        size = self.limits.prefix_blocks
        found = 0
        while found < min(len(ids), (num_input - 1) // PREFIX_TOKENS) and ids[found] in self.unused:
            found += 1
        for block in ids[:found]:
            self.unused.remove(block)
        alone = -(-num_input // self.limits.block_tokens) - found * size
        self._take(alone)
        shared = found
        while shared < num_input // PREFIX_TOKENS and ids[shared] not in self.unused:
            shared += 1
        alone -= (shared - found) * size
        growth = -(-(num_input + num_output - 1) // self.limits.block_tokens) - -(
            -num_input // self.limits.block_tokens
        )
        self._take(growth)
        self.free += alone + growth
        self.unused += reversed(ids[:shared])
        return found


@QUICK
@given(
    st.lists(
        st.builds(
            Asked,
            st.just(0),
            st.integers(1, 60),
            st.integers(1, 12),
            st.integers(0, 3),
            st.integers(0, 7),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 60),
)
def test_prefix_hits_are_those_of_a_least_recently_used_cache(asked, block_tokens, spare):
    limits = make_limits(
        block_tokens=block_tokens,
        prefix_tokens=PREFIX_TOKENS,
        prefix_blocks=PREFIX_TOKENS // block_tokens,
        token_budget=17,
    )
    one_by_one = [request._replace(arrival_s=100 * i) for i, request in enumerate(asked)]
    capacity = blocks_needed(asked, limits) + spare
    served = serve(one_by_one, limits, capacity)
    cache, trace = BruteForceCache(limits, capacity), make_trace(one_by_one)
    expected = [
        cache.hits(trace.prefix_ids[start:end].tolist(), request.num_input, request.num_output)
        for request, start, end in zip(
            one_by_one, trace.prefix_starts, trace.prefix_starts[1:], strict=False
        )
    ]
    assert (served.requests.cached // PREFIX_TOKENS).tolist() == expected


def test_requests_that_share_a_prefix_at_the_same_time_hold_it_together():
    limits = make_limits(prefix_tokens=PREFIX_TOKENS, prefix_blocks=2)
    served = serve([Asked(0, 33, 1, shared=4)] + [Asked(2, 33, 8, shared=4)] * 5, limits, 60)
    assert served.requests.cached.tolist() == [0, *[32] * 5]
    assert (
        served.requests.preemptions.sum() == 0
    )  # 5 x 40 tokens alone would need 50 blocks, and the first 8 are shared


@QUICK
@given(traces, st.integers(0, 10))
def test_sharing_prefixes_never_computes_more_prompt_tokens(asked, spare):
    plain = make_limits()
    shared = plain._replace(prefix_tokens=PREFIX_TOKENS, prefix_blocks=2)
    capacity = len(asked) * blocks_needed(asked, plain) + spare
    counts = []
    for limits in (plain, shared):
        served = serve(asked, limits, capacity)
        assume(served.requests.preemptions.sum() == 0)
        counts.append(
            sum(new for step in served.steps for _, new, _, decodes in step[0] if not decodes)
        )
    assert counts[1] == counts[0] - served.requests.cached.sum()
