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
from simulator.planner.traffic import Traffic
from simulator.results.answer.deployments import BACKLOG
from simulator.results.metrics import is_in_time, latencies, measure_throughput

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
_BLOCKS, _DRAWS = 20, 200
"""Blocks of neighbouring requests, which wait in the same queues; and how often they are drawn."""


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
    def binding_target(self) -> str:
        """The name of that target."""
        return max(self.ratios, key=self.ratios.__getitem__)

    def find_worst(self, prefixes: tuple[str, ...]) -> float:
        """The worst ratio of targets whose names begin so; 0 where there are none."""
        return max(
            (ratio for name, ratio in self.ratios.items() if name.startswith(prefixes)), default=0.0
        )


def measure_outcome(
    table: pd.DataFrame, traffic: Traffic, targets: Targets, slo: SLO, later: float = 1.0
) -> Outcome:
    """Hold a trial against the targets, and against an implied one, ``backlog``: that it keeps up
    with what comes.

    Args:
        table: ``REQUEST_COLUMNS`` of all requests of the traffic.
        later: factor on the seconds to first token.
    """
    requests = table.iloc[traffic.lead :]
    latency = latencies(requests)
    latency["e2e_s"] += (later - 1.0) * latency["ttft_s"]
    latency["ttft_s"] *= later
    measured: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for name, limits in targets.latencies.items():
        values = latency[name].dropna()
        for level, limit in limits.items():
            found = _measure_level(values, level)
            measured[f"{name}.{level}"], ratios[f"{name}.{level}"] = found, found / limit
    tokens_per_s = measure_throughput(table, traffic.lead).output_tokens_per_s
    kept = is_in_time(latency, slo)
    if targets.attainment is not None:
        found = float(kept.mean())
        measured["attainment"] = found
        ratios["attainment"] = _compare_shares(1 - found, 1 - targets.attainment)
    if targets.output_tokens_per_s is not None:
        measured["output_tokens_per_s"] = tokens_per_s
        ratios["output_tokens_per_s"] = targets.output_tokens_per_s / tokens_per_s
    measured[BACKLOG], ratios[BACKLOG] = _measure_backlog(requests, traffic.stay_s)
    return Outcome(
        ratios,
        measured,
        tokens_per_s,
        float(kept.mean()) if slo.is_set else math.nan,
        float((requests["num_preemptions"] > 0).mean()),
    )


def _measure_level(values: pd.Series, level: str) -> float:
    if not len(values):
        return 0.0
    return float(values.mean() if level == "mean" else values.quantile(_QUANTILES[level]))


def estimate_sampling_error(
    requests: pd.DataFrame, outcome: Outcome, targets: Targets, slo: SLO
) -> float:
    """Standard error of an outcome's worst latency or attainment over its limit, by a block
    bootstrap: requests that wait together are drawn together. 0 of a target that is a rate.

    Args:
        requests: those that are judged, in order of arrival.
    """
    name, level = outcome.binding_target.partition(".")[::2]
    latency = latencies(requests)
    if name in targets.latencies:
        limit = targets.latencies[name][level]
        values = latency[name].reset_index(drop=True)
    elif name == "attainment" and targets.attainment is not None:
        level, limit = "mean", 1 - targets.attainment
        values = 1.0 - is_in_time(latency, slo).reset_index(drop=True)
    else:
        return 0.0
    blocks = np.array_split(np.arange(len(values)), min(_BLOCKS, len(values)))
    rng = np.random.default_rng(0)
    drawn = [
        _measure_level(values[np.concatenate([blocks[n] for n in chosen])].dropna(), level)
        for chosen in rng.integers(len(blocks), size=(_DRAWS, len(blocks)))
    ]
    return float(np.std(drawn)) / limit if limit else 0.0


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
