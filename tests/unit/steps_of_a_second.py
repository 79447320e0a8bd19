"""Requests served by the batching rules alone, with every invariant checked between the steps. No
prices, no plan: steps take a second.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from simulator.engine.batching import complete_step, form_step, is_decode, queue_request
from simulator.engine.pool import choose_rank
from simulator.engine.state import Limits, start_ranks, start_requests
from simulator.policies.scheduling import Rules
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
    usual = Limits(Rules(64, 8, True, True), 4, 0, 0, 0)
    of_rules = {key: changes.pop(key) for key in list(changes) if key in Rules._fields}
    return usual._replace(rules=usual.rules._replace(**of_rules), **changes)


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
    """Records of them."""
    steps: list
    """For each step, for each rank: ``(request, new tokens, tokens computed before, whether it
    decodes)``."""


def queue_at_fewest(requests, ranks, limits, r):
    """Queue a request at the rank with the fewest unfinished ones."""
    d = choose_rank(ranks, limits, 0, 0)
    queue_request(requests, ranks, d, r)


def serve(asked, limits, capacity, num_ranks=1):
    """Serve everything, a step a second, and check the state before and after every step."""
    trace = make_trace(asked)
    requests = start_requests(trace, with_prefixes=limits.prefix_tokens > 0)
    ranks = start_ranks(
        num_ranks,
        limits.rules.max_sequences,
        capacity,
        int(trace.prefix_ids.max()) + 1,
        output_share=limits.rules.output_share,
    )
    position, now_s, steps = 0, 0.0, []
    most_steps = (
        100
        + int(trace.arrival_s[-1])
        + len(asked) * int((trace.num_input + trace.num_output).sum())
    )
    counts = ranks.counts[0]
    while counts.num_finished < len(asked):
        assert len(steps) < most_steps, "no progress"
        while position < len(asked) and trace.arrival_s[position] <= now_s:
            queue_at_fewest(requests, ranks, limits, position)
            position += 1
        if form_step(requests, ranks, limits, now_s):
            steps.append(check_step(requests, ranks, limits, now_s))
            check_blocks(requests, ranks, limits)
            complete_step(requests, ranks, limits, now_s + 1)
        else:
            assert counts.num_pushed == counts.num_finished, "requests wait and none runs"
        check_blocks(requests, ranks, limits)
        now_s += 1
    check_end(requests, ranks, trace)
    return Served(requests.each, steps)


def check_step(requests, ranks, limits, now_s):
    found, each = [], requests.each
    for d in range(len(ranks.each)):
        count = ranks.each[d].num_running
        assert count <= limits.rules.max_sequences
        ids, chunks = ranks.running[d, :count], ranks.chunk[d, :count]
        assert len(set(ids.tolist())) == count
        assert (each.arrival_s[ids] <= now_s).all()
        assert (chunks >= 0).all()
        rows = [
            (
                int(r),
                int(new),
                int(each.computed[r]),
                bool(is_decode(each.num_input[r], each.generated[r], each.computed[r])),
            )
            for r, new in zip(ids, chunks, strict=True)
            if new
        ]
        remaining = each.num_input[ids] + each.generated[ids] - each.computed[ids]
        assert (chunks <= remaining).all()
        is_alone = len(rows) == 1 and not limits.rules.splits_prompts
        assert chunks.sum() <= limits.rules.token_budget or is_alone
        if not limits.rules.splits_prompts:
            assert (chunks == remaining)[chunks > 0].all()
        if not (
            limits.rules.mixes_phases or limits.rules.finds_full
        ):  # who finds all comes as a decode
            assert len({decodes for *_, decodes in rows}) <= 1
        found.append(rows)
    return found


def check_blocks(requests, ranks, limits):
    """Free + held alone + cached = capacity, and what is cached agrees with who holds it."""
    each = requests.each
    is_running = np.zeros(len(each), dtype=bool)
    for d in range(len(ranks.each)):
        ids = ranks.running[d, : ranks.each[d].num_running]
        is_running[ids] = True
        held = int(each.blocks[ids].sum())
        assert (each.blocks[ids] >= 0).all()
        cache, in_cache = ranks.caches[d], np.isfinite(ranks.prefixes.since_s[d, 0, :-1])
        assert cache.free_blocks >= 0
        assert cache.num_full == ranks.prefixes.full_before[d, 0].sum()
        assert (ranks.prefixes.full_before[d, 0] >= 0).all()
        cached = in_cache.sum() * limits.prefix_blocks
        assert cache.free_blocks + cache.num_full + held + cached == cache.capacity_blocks
        refs = np.zeros(len(in_cache), dtype=np.int64)
        for r in ids:
            start = requests.prefix_starts[r]
            np.add.at(refs, requests.prefix_ids[start : start + each.shared[r]], 1)
        assert np.array_equal(refs, ranks.prefixes.refs[d, 0, :-1])
        assert in_cache[refs > 0].all()
        evictable = set(np.flatnonzero(in_cache & (refs == 0)).tolist())
        assert set(ring(ranks, d)) == evictable
        assert cache.num_evictable == len(evictable)
        blocks = -(-each.computed[ids] // limits.block_tokens) + limits.sequence_blocks
        assert (each.blocks[ids] + each.shared[ids] * limits.prefix_blocks >= blocks).all()
    assert (each.blocks[~is_running] == 0).all()
    assert (each.shared[~is_running] == 0).all()


def ring(ranks, d):
    """Evictable blocks from the oldest to the newest; both directions agree."""
    older, newer = ranks.prefixes.older[d, 0], ranks.prefixes.newer[d, 0]
    ends = len(older) - 1
    order, block = [], int(newer[ends])
    while block != ends:
        order.append(block)
        block = int(newer[block])
    backwards, block = [], int(older[ends])
    while block != ends:
        backwards.append(block)
        block = int(older[block])
    assert order == backwards[::-1]
    return order


def check_end(requests, ranks, trace):
    each = requests.each
    assert np.array_equal(each.generated, trace.num_output)
    assert ranks.gap_counts.sum() == (trace.num_output - 1).sum()
    assert ranks.counts.outstanding_tokens[0] == 0
    assert (ranks.each.num_running == 0).all()
    assert (ranks.each.waiting.count == 0).all()
    assert (each.arrival_s <= each.scheduled_s).all()
    assert (each.scheduled_s < each.first_s).all()
    assert (each.first_s <= each.finish_s).all()
    assert ((each.finish_s - each.first_s) >= each.num_output - 1).all()
    assert (each.cached < each.num_input).all()


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
    checks_known=st.booleans(),
    finds_full=st.booleans(),
    frees_partial_first=st.booleans(),
    output_share=st.sampled_from([0.0, 0.7, 1.0]),
    least_output_share=st.just(0.1),
    output_share_decay=st.just(0.05),
    retract_steps=st.just(2),
)
