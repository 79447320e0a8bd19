"""Log of steps: a row for each, or for a run of decode steps that are alike. Compiled.

Between two requests that arrive or end, a replica takes steps that differ only in their contexts,
which a row counts and adds up. The latest step of a replica has a row of its own, since it may be
cut short; it joins the run before it when the next one is formed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit_inner
from simulator.engine.batching import count_kept_tokens, is_decode
from simulator.engine.cache import measure_use
from simulator.engine.state import Limits, Ranks, Requests
from simulator.results.phases import STEP_PHASES

_HELD = ("prefill_tokens", "decode_tokens", "running", "waiting", "kv_used", "limited_by")
_PHASES = tuple(f"{phase}_s" for phase in STEP_PHASES)
_COSTS = ("load_imbalance", "read_bytes", "dropped_pairs")
LOG_COLUMNS = ("start_s", "duration_s", *_HELD, *_PHASES, *_COSTS)
"""Columns of a step's row in the log: those of :data:`simulator.results.tables.STEP_COLUMNS`
(``limited_by`` as an index), the expert load imbalance, the bytes of weights and cache that the
mean rank had to read, and the token-expert pairs dropped in all layers."""
POOL, REPLICA, ROW_STEPS, DECODES = range(len(LOG_COLUMNS), len(LOG_COLUMNS) + 4)
"""Columns behind these: pool and replica of the step, number of steps in the row, and decoding
sequences of these steps, added up."""
NUM_COLUMNS = DECODES + 1
"""Columns of a log row in all."""
_MOST_STEPS = 32
"""Most steps of a run, so that what grows within it (contexts, blocks in use) hardly changes."""
_PREFILL, _DECODE, _RUNNING, _WAITING, _KV_USED, _LIMITED_BY = range(2, 8)
_IMBALANCE, _READ_BYTES, _DROPPED = range(len(LOG_COLUMNS) - 3, len(LOG_COLUMNS))


@jit_inner
def find_row(ranks: Ranks, log: NDArray[np.float64], rows: int) -> tuple[int, int]:
    """Find the row for the next step of a replica, whose latest step has ended.

    Args:
        rows: rows of the log that are taken.

    Returns:
        Row, and number of rows taken with it.
    """
    counts = ranks.counts[0]
    run, row = counts.run_row, counts.last_row
    if row >= 0 and run >= 0 and _is_alike(log[run], log[row]):
        _add_step(log[run], log[row])
    else:
        run, row = row, rows
        rows += 1
    counts.run_row = -1 if counts.has_ended else run
    counts.last_row = row
    counts.has_ended = False
    return row, rows


@jit_inner
def _is_alike(run: NDArray[np.float64], step: NDArray[np.float64]) -> bool:
    """Whether a step that follows a run decodes the same number of sequences with the same queue,
    and nothing else.
    """
    return bool(
        run[_PREFILL] == 0
        and step[_PREFILL] == 0
        and step[DECODES] > 0
        and run[DECODES] == step[DECODES] * run[ROW_STEPS]
        and run[_RUNNING] == step[_RUNNING]
        and run[_WAITING] == step[_WAITING]
        and run[_LIMITED_BY] == step[_LIMITED_BY]
        and run[ROW_STEPS] < _MOST_STEPS
    )


@jit_inner
def _add_step(run: NDArray[np.float64], step: NDArray[np.float64]) -> None:
    total_s = run[1] + step[1]
    run[_IMBALANCE] = (run[_IMBALANCE] * run[1] + step[_IMBALANCE] * step[1]) / total_s
    run[1] = step[0] + step[1] - run[0]
    run[_DECODE] += step[_DECODE]
    run[_KV_USED] = step[_KV_USED]
    for c in range(_LIMITED_BY + 1, _IMBALANCE):
        run[c] += step[c]
    run[_READ_BYTES] += step[_READ_BYTES]
    run[_DROPPED] += step[_DROPPED]
    run[ROW_STEPS] += 1
    run[DECODES] += step[DECODES]


@jit_inner
def observe(requests: Requests, ranks: Ranks, limits: Limits, row: NDArray[np.float64]) -> None:
    """Write the contents of the formed step into columns 2 to 7 of a log row, and ``DECODES``."""
    running, chunk, rows = ranks.running, ranks.chunk, requests.each
    prefill = decode = more = holding = queued = longest = limit = 0
    used = 0.0
    num_pools = len(ranks.caches)
    for d in range(len(ranks.each)):
        rank = ranks.each[d]
        decode += rank.num_decodes
        for i in range(rank.num_decodes, rank.num_running):
            r, new = running[d, i], chunk[d, i]
            if new == 0:
                continue
            request = rows[r]
            if not is_decode(request.num_input, request.generated, request.computed):
                prefill += new
                continue
            decode += 1
            if request.finish_s >= 0:
                more -= 1  # it has ended with the step before, which nobody knew
                holding -= 1
            if new > 1:
                more += count_kept_tokens(requests, limits, r, new) - 1
        holding += rank.num_running
        waiting = rank.waiting.count + rank.ready.count + rank.line.count
        queued += waiting
        if waiting > longest:
            longest, limit = waiting, rank.stopped_by
        if d < num_pools:
            used += measure_use(ranks, d, limits) / num_pools
    row[_PREFILL], row[_DECODE], row[_RUNNING] = prefill, decode + more, holding
    row[DECODES] = decode
    row[_WAITING], row[_KV_USED], row[_LIMITED_BY] = queued, used, limit


def cut_row(row: NDArray[np.float64], at_s: float) -> None:
    """Cut a step short: the time until then is spent in the proportions of the whole step, and it
    emits no tokens.
    """
    share = max(0.0, at_s - row[0]) / row[1]
    row[1] *= share
    row[_LIMITED_BY + 1 : _IMBALANCE] *= share
    row[_READ_BYTES] *= share
    row[[_PREFILL, _DECODE, _DROPPED, DECODES]] = 0
