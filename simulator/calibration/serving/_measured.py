"""Measured times to first token and times per token of serving points, and errors of predictions
as calibrations state them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.validation.serving import MEASURES


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
