"""Sentence on choices of experts that found no room: dropped, or computed by another expert."""

from __future__ import annotations

from typing import Any

import pandas as pd

_MUCH = 1.05
"""Ratio of the largest share of a layer to the mean layer's from which that layer is named."""


def tell_drops(row: pd.Series, facts: dict[str, Any], short: str) -> str | None:
    """Describe the shares of choices that were dropped or rerouted, and their consequence; ``None``
    where none can be.

    Args:
        row: the deployment's row of ``summary.csv``.
        facts: of the deployment in ``run.json``.
        short: the deployment's name.
    """
    share = float(row["dropped_share"])
    if share != share:
        return None
    by_layer = facts.get("overflow_by_layer") or {}
    dropped, rerouted = (by_layer.get(name) or [0.0] for name in ("dropped", "rerouted"))
    moved = sum(rerouted) / len(rerouted)
    if share == 0.0 and moved == 0.0:
        return f"{short} drops no choice of an expert: there was room for all."
    done = []
    if share:
        done.append(f"drops {_percent(share)} of its tokens' choices of experts{_worst(dropped)}")
    if moved:
        which = "of them" if share else "of its tokens' choices of experts"
        done.append(f"sends {_percent(moved)} {which} to next choices{_worst(rerouted)}")
    less = "it computes less than without, and " if share else ""
    return f"{short} {' and '.join(done)}: {less}what that does to its answers is not simulated."


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "nearly 100 %"


def _worst(share_L: list[float]) -> str:
    """Name the layer with the largest share, where layers differ."""
    worst = max(share_L)
    if worst * len(share_L) < _MUCH * sum(share_L):
        return ""
    return f" ({_percent(worst)} in MoE layer {share_L.index(worst)}, the most)"
