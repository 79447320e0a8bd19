"""Initial state of batching."""

from __future__ import annotations

import numpy as np

from simulator.engine.state import (
    FIRST_IN_LINE,
    IS_LOST,
    LAST_IN_LINE,
    LAST_RESERVED,
    NEVER,
    NEWER,
    NUM_KEPT,
    NUMBER,
    RAN_OUT,
    RESERVED_S,
    Clock,
    Ints,
    Ranks,
    Requests,
)
from simulator.results.tables import NUM_GAP_BINS
from simulator.workload.traces import RequestTrace


def start_requests(trace: RequestTrace, *, with_prefixes: bool, first: int = 0) -> Requests:
    """Make the rows of requests that have not begun.

    Args:
        first: number of the first of them, where they are the end of a longer trace.
    """
    count = trace.num_requests
    has_prefixes = with_prefixes and trace.prefix_block_tokens > 0
    starts = trace.prefix_starts if has_prefixes else np.zeros(count + 1)
    ids = trace.prefix_ids if has_prefixes else np.zeros(0)
    requests = Requests(
        np.zeros((count, NUMBER + 1), dtype=np.int64),
        np.full((count, RESERVED_S + 1), np.nan),
        starts.astype(np.int64),
        np.require(ids, np.int64, ["C", "W"]),  # compiled code is of arrays that can be written
        first,
    )
    requests.arrival_s[:] = trace.arrival_s
    requests.num_input[:] = trace.num_input
    requests.num_output[:] = trace.num_output
    requests.following[:] = -1
    requests.domain[:] = trace.domain if len(trace.domain) else -1
    requests.number[:] = trace.part_of.numbers if trace.part_of else first + np.arange(count)
    return requests


def start_ranks(
    num_ranks: int,
    max_sequences: int,
    capacity_blocks: int,
    num_prefixes: int,
    num_lanes: int = 1,
    output_share: float = 1.0,
    ring_tokens: int = 1,
    num_profiles: int = 1,
) -> Ranks:
    """Make idle ranks: nothing waits, nothing runs, all blocks are free.

    Args:
        num_ranks: ranks that batch on their own, in all lanes together.
        capacity_blocks: KV blocks of a data-parallel rank, for all lanes together.
        num_lanes: batches of a data-parallel rank that are in flight.
        output_share: share of the outputs of running requests that admission assumes at first.
        ring_tokens: tokens of a KV block where decodes may be summed.
        num_profiles: load profiles of requests.
    """
    num_pools = num_ranks // num_lanes

    def zeros(*shape: int) -> Ints:
        return np.zeros(shape, dtype=np.int64)

    ranks = Ranks(
        each=zeros(num_ranks, IS_LOST + 1),
        running=zeros(num_ranks, max_sequences) - 1,
        chunk=zeros(num_ranks, max_sequences),
        pools=zeros(num_pools, RAN_OUT + 1),
        prefixes=zeros(num_pools, num_prefixes + 1, NEWER + 1),
        counts=zeros(1, LAST_RESERVED + 1),
        output_share=np.full(num_ranks, output_share),
        ring=zeros(num_ranks, ring_tokens),
        emitted_s=np.zeros(num_ranks),
        ends=zeros(num_ranks, max_sequences),
        starts=zeros(num_ranks, max_sequences),
        profiles=zeros(num_ranks, num_profiles),
    )
    ranks.head[:] = ranks.tail[:] = ranks.first_reserved[:] = -1
    ranks.each[:, [FIRST_IN_LINE, LAST_IN_LINE]] = -1
    ranks.free_blocks[:] = ranks.capacity_blocks[:] = capacity_blocks
    ranks.older[:, num_prefixes] = ranks.newer[:, num_prefixes] = num_prefixes
    return ranks


def start_clock() -> Clock:
    """Make the clock of an idle replica."""
    clock = Clock(
        np.zeros((1, NUM_KEPT + 1), dtype=np.int64), np.zeros(NUM_GAP_BINS, dtype=np.int64)
    )
    clock.first_coming[:] = clock.last_coming[:] = -1
    clock.look_steps[:] = NEVER
    clock.run_row[:] = clock.last_row[:] = -1
    return clock
