"""Errors of calibrations on models, shapes and GPUs that were left out of their fits, put together
for each target.

Entries of a calibration state a median and a 90th percentile each. What a target asks is of all
their rows, so the entries' errors are taken to be spread log-normally through those two points and
mixed by rows: within a few per cent of the figure on all rows wherever both can be computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from simulator.base.errors import UserError
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import CalibrationFile, EngineFit, Fit
from simulator.results.targets import TARGETS, Target
from simulator.validation.hardware import accelerator_name

COLUMNS = ("what", "rows", "fits", "missed", "median", "p90")
"""``missed``: how many of the ``fits`` are beyond the target by themselves."""
_TABLES = {
    "moe": "grouped_gemm",
    "eplb": "grouped_gemm",
    "gemm": "gemm",
    "attention": "attention",
    "mla": "attention",
} | {
    "alltoall": "exchange",
    "collective": "collective",
}
"""The table of a calibration that prices a suite of kernels."""
_LATENT = "mla_"
_ANY = "any"
_GRID = np.geomspace(1e-4, 30.0, 6000)
_AT_90 = float(norm.ppf(0.9))


class Residuals(NamedTuple):
    """Errors of one fit on what was left out of it."""

    rows: float
    median: float
    p90: float


def judge_left_out(rows: pd.DataFrame, calibrations: Mapping[str, CalibrationFile]) -> pd.DataFrame:
    """:data:`COLUMNS` for every target that some rows are held to and some calibration says
    something of.

    Args:
        rows: :data:`simulator.results.scores.SCORE_COLUMNS`; only calibrations of their GPUs are
            looked at.
    """
    found = []
    for target in TARGETS:
        own = rows[target.select_rows(rows)]
        named = _calibrations(own["group"].astype(str).unique()) if len(own) else set()
        parts = [
            part
            for name in sorted(named & set(calibrations))
            for part in _residuals(calibrations[name], target)
        ]
        if parts:
            missed = sum(part.median > target.median or part.p90 > target.p90 for part in parts)
            found.append(
                (
                    target.what,
                    int(sum(part.rows for part in parts)),
                    len(parts),
                    missed,
                    *mix_residuals(parts),
                )
            )
    return pd.DataFrame(found, columns=list(COLUMNS))


def mix_residuals(parts: Iterable[Residuals]) -> tuple[float, float]:
    """Median and 90th percentile of all rows together.

    >>> parts = [Residuals(10, 0.05, 0.2), Residuals(30, 0.05, 0.2)]
    >>> [round(value, 3) for value in mix_residuals(parts)]
    [0.05, 0.2]
    """
    rows, medians, tails = (
        np.array(column, dtype=float)[:, None] for column in zip(*parts, strict=True)
    )
    middle = np.log(np.maximum(medians, _GRID[0]))
    spread = np.maximum(np.log(np.maximum(tails, _GRID[0])) - middle, 1e-3) / _AT_90
    share: NDArray[np.float64] = (rows * norm.cdf((np.log(_GRID) - middle) / spread)).sum(
        axis=0
    ) / rows.sum()
    return float(np.interp(0.5, share, _GRID)), float(np.interp(0.9, share, _GRID))


def _calibrations(groups: Iterable[str]) -> set[str]:
    """Names of the calibrations of the GPUs that groups begin with."""
    found = set()
    for gpu in {group.split()[0] for group in groups if group.strip()}:
        name = accelerator_name(gpu)
        try:
            found |= {load_accelerator(name, gpu).calibration} if name else set()
        except UserError:  # a user's own file that is wrong, of which the rows speak
            continue
    return found


def _residuals(calibration: CalibrationFile, target: Target) -> list[Residuals]:
    if target.suites == ("serving",):
        key = f"{target.quantity} {target.word}".strip()
        return [
            Residuals(*fit.left_out[key])
            for name, fit in calibration.engine.items()
            if name == _ANY and key in fit.left_out
        ]
    tables = {_TABLES[suite] for suite in target.suites if suite in _TABLES}
    found = []
    for table in tables:
        entries = getattr(calibration, table)
        for engine, by_name in entries.items():
            for name, fit in by_name.items():
                is_pooled = engine == _ANY and any(
                    name in other for key, other in entries.items() if key != _ANY
                )
                is_wanted = table != "attention" or name.startswith(_LATENT) == (
                    "mla" in target.suites
                )
                if is_wanted and not is_pooled and (said := _residuals_of(fit)):
                    found.append(said)
    return found


def _residuals_of(fit: Fit | EngineFit) -> Residuals | None:
    if (
        fit.kind == "assumed"
        or fit.num_rows is None
        or fit.median_error is None
        or fit.p90_error is None
    ):
        return None
    return Residuals(fit.num_rows, fit.median_error, fit.p90_error)
