"""One trial: a deployment serves requests at the ``step`` fidelity, and every target is held
against what happened.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from simulator.config.capacity import Targets
from simulator.config.workload import SLO
from simulator.results.answer.deployments import BACKLOG
from simulator.results.metrics import is_in_time, latencies

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_WORST = 1e9
"""Measured over limit, of a target that has no bound."""
_GROWTH = 0.05
"""Share of the requests by which those that are being served may grow over half of the time, for a
deployment that keeps up ..."""
_CHANCE = 4.0
"""... and so many times the square root of their number besides, which comes and goes by chance."""
_FEWEST_REQUESTS = 40
"""Fewest requests of which growth can be told from chance."""
_EARLY, _LATE = 0.05, 0.95
"""Quantiles of the times at which requests end, between which tokens are counted: not while the
last few run out."""


class Outcome(NamedTuple):
    """Figures that a trial measured."""

    ratios: Annotated[dict[str, float], Field(min_length=1)]
    """Measured over limit by target (``ttft_s.p90``), limit over measured of shares and rates;
    above 1 is missed."""
    measured: dict[str, float]
    """Measured values by target, in its own unit."""
    output_tokens_per_s: float
    kept_share: float
    """Share of the requests that keep the workload's SLO; NaN without one."""
    preempted_share: float = 0.0
    """Share of the requests that lost their KV blocks to others and were computed again."""

    @property
    def met(self) -> bool:
        """Whether all targets were."""
        return self.worst <= 1.0

    @property
    def worst(self) -> float:
        """Ratio of the target that was missed by most, or kept by least."""
        return max(self.ratios.values())

    @property
    def tightest(self) -> str:
        """The name of that target."""
        return max(self.ratios, key=self.ratios.__getitem__)

    def find_worst(self, prefixes: tuple[str, ...]) -> float:
        """The worst ratio of targets whose names begin so; 0 where there are none."""
        return max(
            (ratio for name, ratio in self.ratios.items() if name.startswith(prefixes)), default=0.0
        )


def outcome(
    requests: pd.DataFrame, targets: Targets, slo: SLO, share: float = 1.0, stay_s: float = 0.0
) -> Outcome:
    """Hold a trial against the targets, and against an implied one, ``backlog``: that it keeps up
    with what comes.

    Args:
        requests: ``REQUEST_COLUMNS`` of those that are judged.
        share: of the deployment's traffic that the trial saw.
        stay_s: that a request may take, where it is known.
    """
    latency = latencies(requests)
    measured: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for name, limits in targets.latencies.items():
        values = latency[name].dropna()
        for level, limit in limits.items():
            found = (
                float(values.mean() if level == "mean" else values.quantile(_QUANTILES[level]))
                if len(values)
                else 0.0
            )
            measured[f"{name}.{level}"], ratios[f"{name}.{level}"] = found, found / limit
    tokens_per_s = _tokens_per_s(requests) / share
    kept = is_in_time(latency, slo)
    if targets.attainment is not None:
        found = float(kept.mean())
        measured["attainment"] = found
        ratios["attainment"] = _compare_shares(1 - found, 1 - targets.attainment)
    if targets.output_tokens_per_s is not None:
        measured["output_tokens_per_s"] = tokens_per_s
        ratios["output_tokens_per_s"] = targets.output_tokens_per_s / tokens_per_s
    measured[BACKLOG], ratios[BACKLOG] = _measure_backlog(requests, stay_s)
    return Outcome(
        ratios,
        measured,
        tokens_per_s,
        float(kept.mean()) if slo.is_set else math.nan,
        float((requests["num_preemptions"] > 0).mean()),
    )


def _tokens_per_s(requests: pd.DataFrame) -> float:
    """Output tokens of the requests that ended between two quantiles of the ends, over the time
    between these.
    """
    finish_s = requests["finish_s"].to_numpy(dtype=np.float64)
    tokens = requests["num_output"].to_numpy(dtype=np.float64)
    early, late = np.quantile(finish_s, (_EARLY, _LATE))
    within = (finish_s > early) & (finish_s <= late)
    if len(finish_s) < _FEWEST_REQUESTS or late <= early:
        within, early, late = (
            np.full(len(finish_s), True),
            float(requests["arrival_s"].min()),
            float(finish_s.max()),
        )
    return float(tokens[within].sum()) / max(float(late - early), 1e-9)


def _measure_backlog(requests: pd.DataFrame, stay_s: float) -> tuple[float, float]:
    """Growth of the requests that are being served from the second to the last quarter of the
    arrivals' time.

    In a steady state as many leave as come. Where they do not, the difference grows with the
    traffic that is too much, whatever the latencies of those that get their turn.

    Returns:
        As a share of what comes in half of the time; and over what it may be.
    """
    arrival_s = requests["arrival_s"].to_numpy(dtype=np.float64)
    finish_s = requests["finish_s"].to_numpy(dtype=np.float64)
    begin, end = float(arrival_s.min()), float(arrival_s.max())
    span = end - begin
    if len(arrival_s) < _FEWEST_REQUESTS or span <= 0:
        return 0.0, 0.0
    second, last = (
        _count_served(arrival_s, finish_s, begin + start * span, begin + stop * span)
        for start, stop in ((0.25, 0.5), (0.75, 1.0))
    )
    coming = len(arrival_s) / 2
    allowed = (
        max(_GROWTH, 0.4 * stay_s / span) + _CHANCE * math.sqrt(max(second, last, 1.0)) / coming
    )
    grown = max(0.0, last - second) / coming
    return grown, grown / allowed


def _count_served(
    arrival_s: NDArray[np.float64], finish_s: NDArray[np.float64], begin: float, end: float
) -> float:
    """Mean number of requests that have come and not left, between two times."""
    inside = np.minimum(finish_s, end) - np.maximum(arrival_s, begin)
    return float(np.maximum(inside, 0.0).sum()) / (end - begin)


def _compare_shares(found: float, allowed: float) -> float:
    """Requests that miss their limits over those that may."""
    if allowed > 0:
        return found / allowed
    return 0.0 if found == 0 else _WORST
