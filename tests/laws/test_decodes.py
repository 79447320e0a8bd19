"""Decodes counted as sums do what each of them would have done by itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.batching import complete_step, dissolve_sums, form_step
from simulator.engine.cache import blocks_for
from simulator.engine.state import start_ranks, start_requests
from simulator.engine.step_log import NUM_COLUMNS, observe
from simulator.work.context import NO_WINDOW, add_decodes, add_sums
from tests.cases import cases
from tests.unit.steps_of_a_second import (
    Asked,
    blocks_needed,
    make_limits,
    make_trace,
    queue_at_fewest,
)

ASKED = st.lists(
    st.builds(
        Asked,
        arrival_s=st.integers(0, 30),
        num_input=st.integers(1, 40),
        num_output=st.integers(1, 30),
    ),
    min_size=1,
    max_size=14,
)


class Run:
    """Requests served a step a second; ``sums`` says whether decodes may be summed."""

    def __init__(self, asked, limits, capacity, num_ranks, sums):
        self.trace = make_trace(asked)
        self.limits = limits._replace(sums_decodes=sums)
        self.requests = start_requests(self.trace, with_prefixes=False)
        ring = limits.block_tokens if sums else 1
        self.ranks = start_ranks(
            num_ranks, limits.rules.max_sequences, capacity, 0, ring_tokens=ring
        )
        self.rows, self.most_summed = [], 0

    def serve(self, look=lambda run: None):
        position, now_s, count = 0, 0.0, len(self.trace.arrival_s)
        while self.ranks.counts.num_finished[0] < count:
            while position < count and self.trace.arrival_s[position] <= now_s:
                queue_at_fewest(self.requests, self.ranks, self.limits, position)
                position += 1
            if form_step(self.requests, self.ranks, self.limits, now_s):
                row = np.zeros(NUM_COLUMNS)
                observe(self.requests, self.ranks, self.limits, row)
                self.rows.append(row.tolist())
                complete_step(self.requests, self.ranks, self.limits, now_s + 1)
                self.most_summed = max(self.most_summed, int(self.ranks.each.num_decodes.max()))
                look(self)
            now_s += 1
        return self


def outcome(run):
    names = ("first_s", "finish_s", "scheduled_s", "preemptions", "generated", "computed", "blocks")
    return (
        {name: run.requests.each[name].tolist() for name in names},
        run.rows,
        run.ranks.gap_counts.tolist(),
        run.ranks.caches.free_blocks.tolist(),
        run.ranks.caches.num_taken.tolist(),
    )


@given(
    asked=ASKED,
    spare=st.integers(0, 30),
    budget=st.sampled_from([4, 16, 64]),
    num_ranks=st.integers(1, 3),
    reserves=st.booleans(),
    sequence_blocks=st.sampled_from([0, 2]),
    finds_full=st.booleans(),
    checks_known=st.booleans(),
)
@cases(30, soak=1500)
def test_requests_are_served_as_if_each_were_looked_at(
    asked, spare, budget, num_ranks, reserves, sequence_blocks, finds_full, checks_known
):
    limits = make_limits(
        token_budget=budget,
        reserves_output=reserves,
        sequence_blocks=sequence_blocks,
        finds_full=finds_full,
        checks_known=checks_known,
    )
    capacity = blocks_needed(asked, limits) + spare
    summed, plain = (
        Run(asked, limits, capacity, num_ranks, sums).serve() for sums in (True, False)
    )
    assert outcome(summed) == outcome(plain)


@given(asked=ASKED, spare=st.integers(0, 30))
@cases(60)
def test_sums_are_those_of_the_requests(asked, spare):
    """After every step: what is summed is what requests are when they are themselves again, and no
    block is held twice or lost.
    """

    def look(run):
        ranks, requests, limits = run.ranks, run.requests, run.limits
        rank, cache, each = ranks.each[0], ranks.caches[0], requests.each
        count, contexts, longest = int(rank.num_decodes), int(rank.contexts), int(rank.longest)
        dissolve_sums(requests, ranks, limits, 0)
        assert (rank.num_decodes, ranks.ring.sum()) == (0, 0)
        ids = ranks.running[0, :count]
        assert contexts == each.computed[ids].sum()
        assert longest == each.computed[ids].max(initial=0)
        for r in ids:
            assert each.blocks[r] == blocks_for(each.computed[r], limits)
        held = each.blocks[ranks.running[0, : rank.num_running]].sum()
        assert cache.free_blocks + cache.num_full + held == cache.capacity_blocks

    limits = make_limits()
    Run(asked, limits, blocks_needed(asked, limits) + spare, 1, True).serve(look)


def test_all_that_decode_are_summed():
    """Or the laws above would hold of nothing."""
    asked = [Asked(0, 8, 20)] * 8
    limits = make_limits()
    run = Run(asked, limits, 8 * blocks_needed(asked, limits), 1, True).serve()
    assert run.most_summed == 8


def test_who_loses_its_blocks_leaves_the_others_summed():
    asked = [Asked(0, 8, 24)] * 8
    limits = make_limits(checks_known=False)
    summed_for = []

    def look(run):
        if run.ranks.caches.ran_out[0]:
            first = run.ranks.running[0, 0]
            summed_for.append(int(run.ranks.each.ticks[0] - run.requests.each.joined[first]))

    run = Run(asked, limits, 5 * blocks_needed(asked, limits), 1, True).serve(look)
    assert run.requests.each.preemptions.sum() > 0
    assert min(summed_for) > 0


@given(
    contexts=st.lists(st.integers(0, 200_000), min_size=1, max_size=20),
    tile_rows=st.sampled_from([1.0, 16.0, 64.0]),
)
def test_a_sum_of_decodes_is_priced_as_they_are(contexts, tile_rows):
    one_by_one, together = np.zeros(6), np.zeros(6)
    for context in contexts:
        add_sums(one_by_one, context, 1, NO_WINDOW, 1, tile_rows)
    add_decodes(together, len(contexts), sum(contexts), max(contexts), tile_rows)
    assert together.tolist() == one_by_one.tolist()
