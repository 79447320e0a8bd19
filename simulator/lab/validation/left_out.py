"""Errors of calibrations on models, shapes and GPUs that were left out of their fits, put together
for each target.

Entries of a calibration state a median and a 90th percentile each. What a target asks is of all
their rows, so the entries' errors are taken to be spread log-normally through those two points and
mixed by rows: within a few per cent of the figure on all rows wherever both can be computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from simulator.base.errors import UserError
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import ANY, CalibrationFile
from simulator.lab.results.targets import TARGETS, Target
from simulator.lab.validation.hardware import accelerator_name

COLUMNS = ("what", "rows", "fits", "missed", "median", "p90", "covered")
"""``missed``: how many of the ``fits`` are beyond the target by themselves."""
_SUITES = {
    "grouped_gemm": {"moe", "eplb"},
    "gemm": {"gemm"},
    "attention": {"attention"},
    "latent attention": {"mla"},
    "exchange": {"alltoall"},
    "collective": {"collective"},
}
"""Suites of kernels that a table of a calibration prices; entries of latent attention are in the
table ``attention``."""
_LATENT = "mla_"
_GRID = np.geomspace(1e-4, 30.0, 6000)
_AT_90 = float(norm.ppf(0.9))


def judge_left_out(
    rows: pd.DataFrame, calibrations: Mapping[str, CalibrationFile], fits: pd.DataFrame
) -> pd.DataFrame:
    """:data:`COLUMNS` for every target that some rows are held to and some calibration says
    something of.

    Args:
        rows: :data:`SCORE_COLUMNS`; only calibrations of their GPUs are
            looked at.
        fits: :func:`simulator.lab.validation.board.list_fit_residuals`.
    """
    found, kernels = [], _list_kernel_fits(fits)
    for target in TARGETS:
        own = rows[target.select_rows(rows)]
        named = _name_calibrations(own["group"].astype(str).unique()) if len(own) else set()
        if target.suites == ("serving",):
            parts = _list_serving_fits(target, named, calibrations)
        else:
            about = [not suites.isdisjoint(target.suites) for suites in kernels["suites"]]
            parts = kernels[np.array(about, dtype=bool) & kernels["calibration"].isin(named)]
        if len(parts):
            is_beyond = (parts["median"] > target.median) | (parts["p90"] > target.p90)
            counts = int(parts["rows"].sum()), len(parts), int(is_beyond.sum())
            found.append((target.what, *counts, *mix_residuals(parts), _coverage(parts)))
    return pd.DataFrame(found, columns=list(COLUMNS))


def mix_residuals(parts: pd.DataFrame) -> tuple[float, float]:
    """Median and 90th percentile of all rows of several fits together.

    Args:
        parts: ``rows``, ``median`` and ``p90`` of each.

    >>> parts = pd.DataFrame({"rows": [10, 30], "median": [0.05, 0.05], "p90": [0.2, 0.2]})
    >>> [round(value, 3) for value in mix_residuals(parts)]
    [0.05, 0.2]
    """
    rows, medians, tails = parts[["rows", "median", "p90"]].to_numpy(float).T[:, :, None]
    middle = np.log(np.maximum(medians, _GRID[0]))
    spread = np.maximum(np.log(np.maximum(tails, _GRID[0])) - middle, 1e-3) / _AT_90
    share: NDArray[np.float64] = (rows * norm.cdf((np.log(_GRID) - middle) / spread)).sum(
        axis=0
    ) / rows.sum()
    return float(np.interp(0.5, share, _GRID)), float(np.interp(0.9, share, _GRID))


def _coverage(parts: pd.DataFrame) -> float:
    """Share of rows inside their bands, of the fits that state one."""
    stated = parts.dropna(subset=["covered"]) if "covered" in parts else parts[:0]
    return float(np.average(stated["covered"], weights=stated["rows"])) if len(stated) else np.nan


def _name_calibrations(groups: Iterable[str]) -> set[str]:
    """Names of the calibrations of the GPUs that groups begin with."""
    found = set()
    for gpu in {group.split()[0] for group in groups if group.strip()}:
        name = accelerator_name(gpu)
        try:
            found |= {load_accelerator(name, gpu).calibration} if name else set()
        except UserError:  # a user's own file that is wrong, of which the rows speak
            continue
    return found


def _list_kernel_fits(fits: pd.DataFrame) -> pd.DataFrame:
    """Fits of kernels that state their errors, with the ``suites`` that they price; of a format
    that some engine has an entry for, not the one of all engines.
    """
    found = fits[fits["table"].isin(_SUITES)].dropna(subset=["rows", "median", "p90"])
    parts = found["entry"].str.split(" ", n=1)
    found = found.assign(engine=parts.str[0], name=parts.str[1])
    alike = ["calibration", "table", "name"]
    is_any = found["engine"] == ANY
    has_engine = found.assign(own=~is_any).groupby(alike)["own"].transform("any")
    kinds = np.where(found["name"].str.startswith(_LATENT), "latent attention", found["table"])
    suites = pd.Series([_SUITES[kind] for kind in kinds], index=found.index, dtype=object)
    return found.assign(suites=suites)[~(is_any & has_engine)]


def _list_serving_fits(
    target: Target, named: set[str], calibrations: Mapping[str, CalibrationFile]
) -> pd.DataFrame:
    key = f"{target.quantity} {target.word}".strip()
    found = [
        calibrations[name].engine[ANY].left_out.get(key)
        for name in sorted(named & set(calibrations))
        if ANY in calibrations[name].engine
    ]
    return pd.DataFrame(filter(None, found), columns=["rows", "median", "p90"])
