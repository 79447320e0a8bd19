"""Initial state of batching."""

from __future__ import annotations

import numpy as np

from simulator.engine.state import (
    NEVER,
    Cache,
    Clock,
    Floats,
    Ints,
    PrefixBlock,
    Rank,
    Ranks,
    Replica,
    ReplicaClock,
    Request,
    Requests,
    make_records,
)
from simulator.results.tables import NUM_GAP_BINS
from simulator.workload.traces import RequestTrace


def start_requests(
    trace: RequestTrace, *, with_prefixes: bool, first: int = 0, offset_N: Floats | None = None
) -> Requests:
    """Make the rows of requests that have not begun.

    Args:
        first: number of the first of them, where they are the end of a longer trace.
        offset_N: of the keys by which they wait, ``[N]``.
    """
    count = trace.num_requests
    has_prefixes = with_prefixes and trace.prefix_block_tokens > 0
    starts = trace.prefix_starts if has_prefixes else np.zeros(count + 1)
    ids = trace.prefix_ids if has_prefixes else np.zeros(0)
    before = make_records(Request, 1)
    for name, kind in Request.__annotations__.items():
        if kind == "float":
            before[name] = np.nan
    before.following[:] = before.child[:] = before.before[:] = before.domain[:] = -1
    requests = Requests(
        np.repeat(before, count),  # much quicker than fields one after the other
        starts.astype(np.int64),
        np.require(ids, np.int64, ["C", "W"]),  # compiled code is of arrays that can be written
        first,
    )
    each = requests.each
    each.arrival_s[:] = trace.arrival_s
    each.num_input[:] = trace.num_input
    each.num_output[:] = trace.num_output
    each.number[:] = trace.part_of.numbers if trace.part_of else first + np.arange(count)
    if len(trace.domain):
        each.domain[:] = trace.domain
    if offset_N is not None:
        each.key_offset[:] = offset_N
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
    is_ordered: bool = False,
) -> Ranks:
    """Make idle ranks: nothing waits, nothing runs, all blocks are free.

    Args:
        num_ranks: ranks that batch on their own, in all lanes together.
        capacity_blocks: KV blocks of a data-parallel rank, for all lanes together.
        num_lanes: batches of a data-parallel rank that are in flight.
        output_share: share of the outputs of running requests that admission assumes at first.
        ring_tokens: tokens of a KV block where decodes may be summed.
        num_profiles: load profiles of requests.
        is_ordered: whether requests wait in an order of their own.
    """
    num_pools = num_ranks // num_lanes

    def zeros(*shape: int) -> Ints:
        return np.zeros(shape, dtype=np.int64)

    ranks = Ranks(
        each=make_records(Rank, num_ranks),
        running=zeros(num_ranks, max_sequences) - 1,
        chunk=zeros(num_ranks, max_sequences),
        caches=make_records(Cache, num_pools),
        prefixes=make_records(PrefixBlock, num_pools, num_prefixes + 1),
        counts=make_records(Replica, 1),
        output_share=np.full(num_ranks, output_share),
        ring=zeros(num_ranks, ring_tokens),
        emitted_s=np.zeros(num_ranks),
        ends=zeros(num_ranks, max_sequences),
        starts=zeros(num_ranks, max_sequences),
        profiles=zeros(num_ranks, num_profiles),
    )
    ranks.each.waiting.is_ordered[:] = ranks.each.line.is_ordered[:] = is_ordered
    ranks.caches.free_blocks[:] = ranks.caches.capacity_blocks[:] = capacity_blocks
    ranks.prefixes.older[:, num_prefixes] = ranks.prefixes.newer[:, num_prefixes] = num_prefixes
    return ranks


def start_clock() -> Clock:
    """Make the clock of an idle replica."""
    clock = Clock(make_records(ReplicaClock, 1), np.zeros(NUM_GAP_BINS, dtype=np.int64))
    clock.counts.look_steps[:] = NEVER
    clock.counts.run_row[:] = clock.counts.last_row[:] = -1
    return clock
