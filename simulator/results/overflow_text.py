"""Sentence on choices dropped by experts over their capacity."""

from __future__ import annotations

import pandas as pd


def tell_drops(row: pd.Series, short: str) -> str | None:
    """Describe the share of choices that were dropped, and its consequence; ``None`` where none can
    be.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: the deployment's name.
    """
    share = float(row["dropped_share"])
    if share != share:
        return None
    if share == 0.0:
        return f"{short} drops no choice of an expert: there was room for all."
    shown = f"{100 * share:.2g}" if share < 0.995 else "nearly 100"
    return (
        f"{short} drops {shown} % of its tokens' choices of experts, which have no room for them: "
        "it computes less than without a capacity, and what that does to its answers is not "
        "simulated."
    )
