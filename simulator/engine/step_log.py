"""What the log keeps of each step. Compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.compiled import compiled
from simulator.engine.batching import is_decode
from simulator.engine.state import Limits, Ranks, Requests

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
    running, chunk, num_running, num_waiting = (
        ranks.running,
        ranks.chunk,
        ranks.num_running,
        ranks.num_waiting,
    )
    num_input, generated, computed = requests.num_input, requests.generated, requests.computed
    capacity_blocks, free_blocks, num_evictable = (
        ranks.capacity_blocks,
        ranks.free_blocks,
        ranks.num_evictable,
    )
    prefill = decode = holding = queued = longest = limit = 0
    used = 0.0
    num_pools = len(capacity_blocks)
    for d in range(len(num_running)):
        for i in range(num_running[d]):
            r, new = running[d, i], chunk[d, i]
            if is_decode(new, num_input[r], generated[r], computed[r]):
                decode += 1
            else:
                prefill += new
        holding += num_running[d]
        queued += num_waiting[d]
        if num_waiting[d] > longest:
            longest, limit = num_waiting[d], ranks.stopped_by[d]
        if d < num_pools:
            held = capacity_blocks[d] - free_blocks[d] - num_evictable[d] * limits.prefix_blocks
            used += held / capacity_blocks[d] / num_pools
    row[2], row[3], row[4], row[5], row[6], row[7] = prefill, decode, holding, queued, used, limit
