"""From measured moments to sums of seconds: least squares of the relative error, where no amount
costs less than nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls
from scipy.stats import trim_mean

from simulator.base.arrays import Floats
from simulator.calibration.host.layers import Sample
from simulator.config.host import ExchangeTable, MatrixTable, Steps

_NUM_BYTES = (0.0, 1e5, 1e6, 1e7)
"""Bytes at which an exchange's line is written down."""
_FAR_KERNEL, _FAR_EXCHANGE = 0.1, 1.0
"""Relative errors from which on a sample is far off. What a rank computes takes the same time
again, and what takes longer was held up by others; an exchange that takes longer is one of its own
kind, so more of them count in full."""
_ROUNDS = 25
"""Rounds of reweighting: weights move by less than measurements repeat long before."""


_OUTER = 0.2
"""Share of the rounds at either end that a mean leaves out: one of five."""


def find_middle(values: ArrayLike) -> Floats:
    """Mean over rounds, which lie along the first axis, without the quickest and the slowest: a
    shared machine has two speeds, between which a median jumps.

    >>> find_middle([1.0, 1.1, 0.9, 3.0, 1.0]).round(3)
    np.float64(1.033)
    """
    return np.asarray(trim_mean(np.asarray(values, dtype=np.float64), _OUTER, axis=0))


def find_spread(values: ArrayLike) -> float | None:
    """Spread between rounds, which lie along the first axis: their standard deviation over their
    mean, in the median over what was timed; ``None`` of a single round.

    >>> round(find_spread([[1.0, 5.0], [1.2, 5.0], [0.8, 5.0]]), 9)
    0.1
    """
    by_round = np.asarray(values, dtype=np.float64)
    if len(by_round) < 2:
        return None
    return float(np.median(by_round.std(axis=0, ddof=1) / by_round.mean(axis=0)))


def fit_steps(
    samples: Sequence[Sample],
    matrix: MatrixTable,
    names: tuple[str, ...],
    source: str,
    known: dict[str, float] | None = None,
) -> Steps:
    """Fit seconds of moments beyond their matrices.

    Args:
        names: amounts that it may depend on; a constant is always among them.
        known: seconds of amounts that are known already, and taken off.
    """
    expected = np.zeros(len(samples))
    for place, sample in enumerate(samples):
        for rows, size in sample.matrices:
            product_s = matrix.seconds_for(np.array([rows]), size, sample.working_bytes)
            expected[place] += product_s[0]
        for name, seconds in (known or {}).items():
            expected[place] += seconds * (1.0 if name == "call" else sample.amounts[name])
    found, error, spread = _fit(samples, names, expected, _FAR_KERNEL)
    return Steps(
        kind="fitted",
        source=source,
        median_error=error,
        spread=spread,
        seconds=dict(zip(("call", *names), found.tolist(), strict=True)),
    )


def fit_exchange(samples: Sequence[Sample], waits: Sequence[Sample], source: str) -> ExchangeTable:
    """Fit a latency, seconds by the busiest rank's bytes, and what ranks wait for each other
    without having more work.
    """
    (call_s, byte_s), error, spread = _fit(samples, ("bytes",), 0.0, _FAR_EXCHANGE)
    (stagger_s, _), *_ = _fit(waits, ("spread",), 0.0, _FAR_EXCHANGE)
    seconds = tuple(float(call_s + byte_s * num_bytes) for num_bytes in _NUM_BYTES)
    return ExchangeTable(
        kind="fitted",
        source=source,
        median_error=error,
        spread=spread,
        num_bytes=_NUM_BYTES,
        seconds=seconds,
        stagger_s=float(stagger_s),
    )


def _fit(
    samples: Sequence[Sample],
    names: tuple[str, ...],
    expected: Floats | float,
    far: float,
) -> tuple[Floats, float, float | None]:
    """Seconds of a constant and of each amount, the median relative error, and the spread between
    rounds.

    Errors are relative to the prediction: relative to the measurement, short times would count
    most, and the fit would be short of the mean. A sample far off (other processes held it up)
    counts in proportion to its error, not to its square (Huber 1964).
    """
    measured = np.array([row.seconds for row in samples])
    columns = np.array([[1.0, *(row.amounts.get(name, 0.0) for name in names)] for row in samples])
    scale = np.maximum(columns.max(axis=0), 1e-30)
    predicted, weight = measured, np.ones(len(measured))
    found = np.zeros(columns.shape[1])
    for _ in range(_ROUNDS):
        row = weight / predicted
        found, _ = nnls(columns / scale * row[:, None], (measured - expected) * row)
        predicted = np.maximum(expected + columns / scale @ found, 0.1 * measured)
        error = np.abs(measured / predicted - 1)
        weight = np.sqrt(np.minimum(1.0, far / np.maximum(error, 1e-9)))
    ratio = measured / np.maximum(expected + columns / scale @ found, 1e-30)
    turns = np.array([row.turn for row in samples])
    by_round = [np.median(ratio[turns == turn]) for turn in np.unique(turns)]
    return np.asarray(found / scale), float(np.median(np.abs(1 / ratio - 1))), find_spread(by_round)
