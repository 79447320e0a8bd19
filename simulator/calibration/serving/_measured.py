"""Measured times to first token and times per token of serving points, and errors of predictions
as calibrations state them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.validation.serving import MEASURES

COMMAND = "moesim calibrate published"
SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
"""Source of serving points."""
ANY = "any"
"""Engine of the entries that hold for engines without entries of their own."""


def read_measured(table: pd.DataFrame, place: int) -> tuple[float, float]:
    """Seconds to the first token, and of a token, of one point."""
    ttft, tpot = (float(table[m.column].iloc[place]) * m.unit_s for m in MEASURES)
    return ttft, tpot


def residuals(ratios_N2: NDArray[np.float64]) -> dict[str, Any]:
    """Errors and 80 % bands of predictions by fits that had not seen the points.

    Args:
        ratios_N2: predicted over measured time to first token, and time per token.
    """
    (ttft, tpot), (ttft_off, tpot_off) = ratios_N2.T, np.abs(ratios_N2 - 1).T
    return {
        "median_error": float(np.nanmedian(tpot_off)),
        "p90_error": float(np.nanquantile(tpot_off, 0.9)),
        "bias": float(np.nanmedian(tpot - 1)),
        "band": _band(tpot),
        "ttft_band": _band(ttft),
        "ttft_median_error": float(np.nanmedian(ttft_off)),
        "ttft_p90_error": float(np.nanquantile(ttft_off, 0.9)),
    }


def _band(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """10th and 90th percentile of measured over predicted."""
    return float(np.nanquantile(1 / ratios, 0.1)), float(np.nanquantile(1 / ratios, 0.9))
