"""What the log keeps of each step. Compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.compiled import compiled
from simulator.engine.batching import is_decode
from simulator.engine.state import (
    CAPACITY_BLOCKS,
    COMPUTED,
    FREE_BLOCKS,
    GENERATED,
    NUM_DECODES,
    NUM_EVICTABLE,
    NUM_INPUT,
    NUM_RUNNING,
    NUM_WAITING,
    STOPPED_BY,
    Limits,
    Ranks,
    Requests,
)

LOG_COLUMNS = (
    "start_s",
    "duration_s",
    "prefill_tokens",
    "decode_tokens",
    "running",
    "waiting",
    "kv_used",
    "limited_by",
    "attention_s",
    "dense_s",
    "experts_s",
    "dispatch_s",
    "combine_s",
    "wait_s",
    "collective_s",
    "overhead_s",
    "load_imbalance",
    "read_bytes",
)
"""Columns of a step's row in the log: those of :data:`simulator.results.tables.STEP_COLUMNS`
(``limited_by`` by its place), the expert load imbalance, and the bytes of weights and cache that
the mean rank had to read."""
POOL, REPLICA = len(LOG_COLUMNS), len(LOG_COLUMNS) + 1
"""Columns behind these: whose step it was."""


@compiled
def observe(requests: Requests, ranks: Ranks, limits: Limits, row: NDArray[np.float64]) -> None:
    """Write what the formed step holds into columns 2 to 7 of a log row."""
    running, chunk, each = ranks.running, ranks.chunk, ranks.each
    ints = requests.ints
    pools = ranks.pools
    prefill = decode = holding = queued = longest = limit = 0
    used = 0.0
    num_pools = len(pools)
    for d in range(len(each)):
        decode += each[d, NUM_DECODES]
        for i in range(each[d, NUM_DECODES], each[d, NUM_RUNNING]):
            r, new = running[d, i], chunk[d, i]
            if is_decode(new, ints[r, NUM_INPUT], ints[r, GENERATED], ints[r, COMPUTED]):
                decode += 1
            else:
                prefill += new
        holding += each[d, NUM_RUNNING]
        queued += each[d, NUM_WAITING]
        if each[d, NUM_WAITING] > longest:
            longest, limit = each[d, NUM_WAITING], each[d, STOPPED_BY]
        if d < num_pools:
            held = (
                pools[d, CAPACITY_BLOCKS]
                - pools[d, FREE_BLOCKS]
                - pools[d, NUM_EVICTABLE] * limits.prefix_blocks
            )
            used += held / pools[d, CAPACITY_BLOCKS] / num_pools
    row[2], row[3], row[4], row[5], row[6], row[7] = prefill, decode, holding, queued, used, limit
