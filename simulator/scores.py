"""How far predictions are from measurements: one table for every suite, and the few numbers that people compare."""

from __future__ import annotations

import numpy as np
import pandas as pd

SCORE_COLUMNS = ("suite", "group", "subject", "quantity", "unit", "measured", "predicted", "low", "high", "status")
"""Of the long table: one row for each measured quantity.

``group`` is what errors are reported by (a GPU and a dtype, an engine), ``subject`` names the row for people. ``predicted``,
``low`` and ``high`` are in the unit of ``measured``, and not a number where ``status`` begins with ``unsupported``.
"""


def is_answered(status: pd.Series) -> pd.Series:
    """Which rows have a prediction: ``ok`` or ``extrapolated``."""
    return ~status.str.startswith("unsupported")


def score(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Statistics of the relative error ``predicted / measured - 1`` for each value of ``by``.

    Args:
        rows: a table with :data:`SCORE_COLUMNS`.

    Returns:
        ``rows``, ``unsupported`` and ``extrapolated`` (shares of all rows), ``median``, ``mean`` and ``p90`` of the absolute error,
        ``bias`` (median of the signed error), ``covered`` (share of answered rows whose measurement lies inside the band).
    """
    answered = is_answered(rows["status"])
    error = rows["predicted"] / rows["measured"] - 1.0
    measured, low, high = rows["measured"], rows["low"], rows["high"]
    wide = rows[by].assign(
        unsupported=~answered,
        extrapolated=rows["status"].str.startswith("extrapolated"),
        error=error.where(answered),
        absolute=error.abs().where(answered),
        covered=((low <= measured) & (measured <= high)).astype(float).where(answered & low.notna()),
    )
    grouped = wide.groupby(by, sort=False, dropna=False)
    return pd.DataFrame(
        {
            "rows": grouped.size(),
            "unsupported": grouped["unsupported"].mean(),
            "extrapolated": grouped["extrapolated"].mean(),
            "median": grouped["absolute"].median(),
            "mean": grouped["absolute"].mean(),
            "p90": grouped["absolute"].quantile(0.9),
            "bias": grouped["error"].median(),
            "covered": grouped["covered"].mean(),
        }
    ).reset_index()


def right_order(measured: np.ndarray, predicted: np.ndarray, least: float = 0.10) -> tuple[int, int]:
    """Pairs that differ by more than ``least`` when measured, and how many of them the prediction puts in the same order."""
    a, b = np.triu_indices(len(measured), 1)
    ratio = np.maximum(measured[a], measured[b]) / np.minimum(measured[a], measured[b])
    far = ratio > 1.0 + least
    same = np.sign(measured[a] - measured[b]) == np.sign(predicted[a] - predicted[b])
    return int(far.sum()), int((same & far).sum())
