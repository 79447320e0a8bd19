"""Sentences on the uncertainty of a run's figures, and on the probability that one deployment is
better.
"""

from __future__ import annotations

import math
from typing import Any

from simulator.results.folder import Results
from simulator.results.formats import metric, seconds_text
from simulator.results.metrics import METRICS

SURE = 0.9
"""Probability below which the headline mentions a winner's uncertainty."""
_NEVER = 0.005
"""Probability that reads as 0 %."""
_SHOWN = {"ttft_p50_s": "TTFT p50", "tpot_p50_s": "TPOT p50"}


def chance_of(results: Results, first: str, second: str, has_targets: bool) -> float | None:
    """Find the probability that a deployment serves the traffic better than another one: by the
    share of requests in time where targets are set, and by both latencies where none are or where
    the shares are equal; ``None`` where it was not drawn for both.
    """
    chances = _bands(results).get("better", {}).get(first, {}).get(second)
    if chances is None:
        return None
    key = "slo_attainment" if has_targets and "slo_attainment" in chances else "latency"
    found = chances.get(key)
    return None if found is None else float(found)


def tell_chance(chance: float) -> str:
    """Write a probability in words.

    >>> tell_chance(0.934), tell_chance(1.0), tell_chance(0.001)
    ('93 %', 'more than 99 %', 'less than 1 %')
    """
    if chance > 1 - 2 * _NEVER:
        return "more than 99 %"
    return "less than 1 %" if chance < 2 * _NEVER else f"{100 * chance:.0f} %"


def tell_bands(results: Results, short: dict[str, str], chance: str) -> str | None:
    """Describe the 80 % bands of the median latencies, and the probability that the better one is
    better; ``None`` where nothing was drawn.

    Args:
        chance: beginning of a sentence on which deployment is better with which probability; empty
            for a single one.
    """
    names = [name for name in results.deployments if name in _bands(results).get("deployments", {})]
    values = results.summary.set_index("deployment")
    pieces = []
    for key, label in _SHOWN.items():
        edges = [edges_of(results, name, key, float(values[key][name])) for name in names]
        known = [one for one in edges if one is not None]
        if names and len(known) == len(edges):
            told = [f"{seconds_text(low)} to {seconds_text(high)}" for low, high in known]
            pieces.append(f"{label} {' against '.join(told)}")
    if not pieces:
        return None
    which = f" ({' against '.join(short[name] for name in names)})" if len(names) > 1 else ""
    alone = "80 % bands, going by how far off the simulator was elsewhere"
    begin = f"{chance}; 80 % bands" if chance else alone
    return f"{begin}{which}: {', '.join(pieces)}."


def band_text(results: Results, deployment: str, key: str, value: float, currency: str) -> str:
    """Write a figure's 80 % band for a table; empty where there is none, where arrivals decide the
    figure, or where both ends read the same as the figure.
    """
    if METRICS[key].is_given and results.is_open:
        return ""
    edges = edges_of(results, deployment, key, value)
    if edges is None:
        return ""
    low, high = (metric(key, edge, currency) for edge in edges)
    return "" if low == high == metric(key, value, currency) else f"{low} to {high}"


def edges_of(
    results: Results, deployment: str, key: str, value: float
) -> tuple[float, float] | None:
    """Find the 10th and 90th percentile of a figure, widened to the figure itself where all
    measurements elsewhere lie on one side of its prediction; ``None`` where nothing was drawn.
    """
    edges = _bands(results).get("deployments", {}).get(deployment, {}).get(key)
    if edges is None or not all(map(math.isfinite, (*edges, value))):
        return None
    return min(edges[0], value), max(edges[1], value)


def _bands(results: Results) -> dict[str, Any]:
    found: dict[str, Any] = results.run.get("bands") or {}
    return found
