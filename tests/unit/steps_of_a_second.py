"""Requests served by the batching rules alone, with every invariant checked between the steps. No
prices, no plan: steps take a second.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from simulator.engine.batching import complete_step, form_step, is_decode, queue_request
from simulator.engine.sending import Weights, choose_rank
from simulator.engine.start import start_clock, start_ranks, start_requests
from simulator.engine.state import Limits
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
    clock: object
    steps: list
    """For each step, for each rank: ``(request, new tokens, tokens computed before, whether it
    decodes)``."""


def queue_at_fewest(requests, ranks, limits, clock, r):
    """Queue a request at the rank with the fewest unfinished ones."""
    d = choose_rank(requests, ranks.each, ranks.prefixes, r, Weights(), limits)
    queue_request(requests, ranks, clock, d, r)


def serve(asked, limits, capacity, num_ranks=1):
    """Serve everything, a step a second, and check the state before and after every step."""
    trace = make_trace(asked)
    requests = start_requests(trace, with_prefixes=limits.prefix_tokens > 0)
    ranks, clock = (
        start_ranks(
            num_ranks,
            limits.rules.max_sequences,
            capacity,
            int(trace.prefix_ids.max()) + 1,
            output_share=limits.rules.output_share,
        ),
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
            queue_at_fewest(requests, ranks, limits, clock, position)
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
        assert count <= limits.rules.max_sequences
        ids, chunks = ranks.running[d, :count], ranks.chunk[d, :count]
        assert len(set(ids.tolist())) == count
        assert (requests.arrival_s[ids] <= now_s).all()
        assert (chunks >= 0).all()
        rows = [
            (
                int(r),
                int(new),
                int(requests.computed[r]),
                bool(is_decode(requests.num_input[r], requests.generated[r], requests.computed[r])),
            )
            for r, new in zip(ids, chunks, strict=True)
            if new
        ]
        remaining = requests.num_input[ids] + requests.generated[ids] - requests.computed[ids]
        assert (chunks <= remaining).all()
        is_alone = len(rows) == 1 and not limits.rules.splits_prompts
        assert chunks.sum() <= limits.rules.token_budget or is_alone
        if not limits.rules.splits_prompts:
            assert (chunks == remaining)[chunks > 0].all()
        if not (
            limits.rules.mixes_phases or limits.rules.finds_preempted
        ):  # who finds all comes as a decode
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
    checks_known=st.booleans(),
    finds_preempted=st.booleans(),
    output_share=st.sampled_from([0.0, 0.7, 1.0]),
    least_output_share=st.just(0.1),
    output_share_decay=st.just(0.05),
    retract_steps=st.just(2),
)
