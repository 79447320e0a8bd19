"""Batching and KV blocks, step by step: who is in a step, and who loses its blocks."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.batching import complete_step, find_last, form_step, is_decode
from simulator.engine.by_ranks import read_batches
from simulator.engine.state import start_ranks, start_requests
from tests.unit.steps_of_a_second import (
    PREFIX_TOKENS,
    QUICK,
    Asked,
    all_limits,
    blocks_needed,
    make_limits,
    make_trace,
    queue_at_fewest,
    serve,
    traces,
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
                    assert before < reached[r]
                    assert before % limits.block_tokens == 0
                    assert before == 0 or limits.rules.finds_full
                    restarts[r] += 1
                reached[r] = before + new
    assert (restarts <= served.requests.preemptions).all()
    assert np.array_equal(reached, served.requests.num_input + served.requests.num_output - 1)


@QUICK
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=4))
def test_a_request_goes_to_the_rank_with_the_fewest_the_first_of_equals(counts):
    """Those that wait, run, stand in line for blocks or have them count alike."""
    requests = start_requests(make_trace([Asked(0, 8, 3)]), with_prefixes=False)
    ranks = start_ranks(len(counts), 8, 100, 0)
    each = ranks.each
    each.waiting.count, each.num_running, each.line.count, each.num_reserved = np.array(counts).T
    queue_at_fewest(requests, ranks, make_limits(), 0)
    assert requests.each.dp_rank[0] == np.argmin(np.sum(counts, axis=1))


@pytest.mark.parametrize("is_ordered", [False, True])
@QUICK
@given(st.permutations(range(9)), st.lists(st.integers(0, 4), min_size=2, max_size=2))
def test_of_the_lanes_of_a_rank_the_last_request_is_found(is_ordered, admitted, counts):
    """The latest admitted, or the one of the greatest key; however many run in the others, and
    whoever is last of another rank.
    """
    counts, lanes = [1, *counts], 3
    requests = start_requests(make_trace([Asked(0, 8, 3)] * 18), with_prefixes=False)
    ranks = start_ranks(2 * lanes, 8, 100, 0, lanes)
    requests.each.admitted[:] = [*admitted, *range(9, 18)]
    requests.each.key[:] = [*(-3.0 * (np.array(admitted) // 3)), *range(9)]
    ranks.each.waiting.is_ordered[:] = is_ordered
    begins = np.cumsum([0, *counts])
    for lane, (begin, end) in enumerate(pairwise(begins)):
        ids = sorted(range(begin, end), key=lambda r: admitted[r])
        ranks.running[2 * lane, : len(ids)], ranks.each.num_running[2 * lane] = ids, len(ids)
    ranks.running[1, :8], ranks.each.num_running[1] = range(9, 17), 8
    places = {True: lambda r: (requests.each.key[r], r), False: lambda r: admitted[r]}
    assert ranks.running[find_last(requests, ranks, 0)] == max(
        range(begins[-1]), key=places[is_ordered]
    )


def test_a_chunk_of_one_token_in_the_middle_of_a_recomputation_is_not_a_decode():
    assert not is_decode(num_input=10, generated=2, computed=5)
    assert is_decode(num_input=10, generated=2, computed=11)
    assert not is_decode(num_input=10, generated=0, computed=9)


def test_a_batch_tells_decodes_from_what_is_computed_again():
    """Six blocks of four tokens for two requests that need four each: one is computed again."""
    limits = make_limits()
    trace = make_trace([Asked(0, 8, 7)] * 2)
    requests = start_requests(trace, with_prefixes=False)
    ranks = start_ranks(1, limits.rules.max_sequences, 6, 1)
    for request in range(2):
        queue_at_fewest(requests, ranks, limits, request)
    seen, now_s = [], 0.0
    while ranks.counts.num_finished[0] < 2:
        form_step(requests, ranks, limits, now_s)
        [batch] = read_batches(requests, ranks)
        seen += zip(batch.new_tokens[0].tolist(), batch.is_decode[0].tolist(), strict=True)
        complete_step(requests, ranks, limits, now_s + 1)
        now_s += 1
    assert requests.each.preemptions.sum() == 1
    assert {new for new, _ in seen} > {1, 8}, "a prompt, decodes, and a prompt with its outputs"
    assert all(decodes == (new == 1) for new, decodes in seen)
