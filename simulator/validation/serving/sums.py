"""Parts of the time of a point: what its TTFT and TPOT owe to kernels and to each of the engine's
own coefficients.

With a fixed number of requests in flight, which requests share a step does not depend on how long
steps take, so both latencies are sums over steps, linear in the coefficients. One simulation then
serves any number of fits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.engine.step_log import LOG_COLUMNS
from simulator.validation.serving.closed_loop import ClosedLoop

TERMS = ("kernel_s", "steps", "sequence_steps", "prompt_steps")
"""Seconds of kernels; steps; sequences of the fullest rank, summed over steps; steps with prompt
tokens."""
_START, _DURATION, _PROMPT, _OVERHEAD = (
    LOG_COLUMNS.index(name) for name in ("start_s", "duration_s", "prefill_tokens", "overhead_s")
)


def sums_of(
    served: ClosedLoop, num_output: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``[2, TERMS]`` for the weighted mean TTFT and TPOT.

    Args:
        served: with a table whose own time is one second for each sequence and nothing else, so
            that the log counts them.
        weights: of requests, summing to 1.
    """
    start_s, end_s = served.steps[:, _START], served.steps[:, _START] + served.steps[:, _DURATION]
    first_s = served.arrival_s + served.ttft_s
    finish_s = first_s + np.where(num_output > 1, served.tpot_s, 0.0) * (num_output - 1)
    half_s = 1e-9 * max(float(end_s[-1]), 1.0)
    arrives, first, last = (
        np.searchsorted(start_s, served.arrival_s - half_s),
        np.searchsorted(end_s, first_s - half_s),
        np.searchsorted(end_s, finish_s - half_s),
    )
    has_more = num_output > 1
    share = (
        np.where(has_more, weights / weights[has_more].sum() / np.maximum(num_output - 1, 1), 0.0)
        if has_more.any()
        else 0 * weights
    )
    of_ttft = _sum_weights(len(start_s), arrives, first, weights)
    of_tpot = _sum_weights(len(start_s), first + 1, last, share)
    sequences = served.steps[:, _OVERHEAD]
    parts = np.stack(
        [
            served.steps[:, _DURATION] - sequences,
            served.num_steps,
            sequences,
            (served.steps[:, _PROMPT] > 0).astype(float),
        ],
        axis=1,
    )
    return np.stack([of_ttft @ parts, of_tpot @ parts])


def _sum_weights(
    num_steps: int, begin: NDArray[np.int64], last: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weight of the requests that each row of steps is part of: from row ``begin`` to ``last``,
    both inside.
    """
    change = np.zeros(num_steps + 2)
    np.add.at(change, np.minimum(begin, num_steps), weights)
    np.add.at(change, np.minimum(last, num_steps - 1) + 1, -weights)
    return np.cumsum(change)[:num_steps]
