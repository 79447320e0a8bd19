"""Measured times to first token and times per token of serving points, and errors of predictions
as calibrations state them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from simulator.lab.validation.serving import MEASURES

_FEWEST_GROUPS = 2


def read_measured(table: pd.DataFrame, place: int) -> tuple[float, float]:
    """Seconds to the first token, and of a token, of one point."""
    ttft, tpot = (float(table[m.column].iloc[place]) * m.unit_s for m in MEASURES)
    return ttft, tpot


def residuals(ratios_N2: NDArray[np.float64]) -> dict[str, Any]:
    """Errors and 80 % bands of predictions by fits that had not seen the points.

    Args:
        ratios_N2: predicted over measured time to first token, and time per token.
    """
    ttft, tpot = (_errors(ratios) for ratios in ratios_N2.T)
    del ttft["bias"]
    return tpot | {f"ttft_{name}": value for name, value in ttft.items()}


def band_of_unseen(
    ratios: NDArray[np.float64], groups: ArrayLike, least_rows: int
) -> tuple[float, float] | None:
    """80 % band of measured over predicted for a group that the fit has not seen, from groups that
    were left out of it; ``None`` where there are fewer than two.

    A new group's middle is as far from the mean of the middles as they are from each other
    (Student's t, since groups are few), and its points are as far from its middle as theirs. Both
    add up by their squares (the prediction interval of a random-effects model).

    Args:
        ratios: predicted over measured, not a number where nothing was predicted.
        least_rows: fewest points of a group that counts.
    """
    names = np.asarray(groups)
    logs = [
        own
        for name in np.unique(names)
        if len(own := -np.log(ratios[(names == name) & np.isfinite(ratios)])) >= least_rows
    ]
    if len(logs) < _FEWEST_GROUPS:
        return None
    tails = np.array([np.quantile(own, [0.1, 0.5, 0.9]) for own in logs])
    middles = tails[:, 1]
    below, above = np.abs(tails[:, [0, 2]] - tails[:, [1]]).mean(axis=0).tolist()
    between = student.ppf(0.9, len(logs) - 1) * middles.std(ddof=1) * np.sqrt(1 + 1 / len(logs))
    low, high = (
        middles.mean() + side * np.hypot(between, inside)
        for side, inside in ((-1, below), (1, above))
    )
    return float(np.exp(low)), float(np.exp(high))


def _errors(ratios: NDArray[np.float64]) -> dict[str, Any]:
    """Errors of predictions, and the 10th and 90th percentile of measured over predicted."""
    off = np.abs(ratios - 1)
    low, high = np.nanquantile(1 / ratios, [0.1, 0.9]).tolist()
    return {
        "median_error": float(np.nanmedian(off)),
        "p90_error": float(np.nanquantile(off, 0.9)),
        "bias": float(np.nanmedian(ratios - 1)),
        "band": (low, high),
    }
