"""One trial: a deployment serves requests at the ``step`` fidelity, and every target is held against what happened."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from simulator.metrics import latencies, meets
from simulator.spec.planning import Targets
from simulator.spec.workload import SLO

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_WORST = 1e9
"""Measured over limit, of a target that has no bound."""


class Outcome(NamedTuple):
    """What a trial measured."""

    ratios: dict[str, float]
    """By target (``ttft_s.p90``): measured over its limit; above 1 is missed. Of shares and rates the other way round."""
    measured: dict[str, float]
    """By target, in its own unit."""
    output_tokens_per_s: float
    goodput_per_s: float
    """Requests a second that keep the workload's SLO; NaN without one."""

    @property
    def met(self) -> bool:
        """Whether all targets were."""
        return self.worst <= 1.0

    @property
    def worst(self) -> float:
        """Of the target that was missed by most, or kept by least."""
        return max(self.ratios.values())

    @property
    def tightest(self) -> str:
        """The name of that target."""
        return max(self.ratios, key=self.ratios.__getitem__)

    def missed_by(self, prefixes: tuple[str, ...]) -> float:
        """The worst ratio of targets whose names begin so; 0 where there are none."""
        return max((ratio for name, ratio in self.ratios.items() if name.startswith(prefixes)), default=0.0)


def outcome(requests: pd.DataFrame, targets: Targets, slo: SLO, share: float = 1.0) -> Outcome:
    """Hold a trial against the targets.

    Args:
        requests: ``REQUEST_COLUMNS`` of all that came.
        share: of the deployment's traffic that the trial saw.
    """
    latency = latencies(requests)
    measured: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        values = latency[name].dropna()
        for level, limit in getattr(targets, name).limits().items():
            found = float(values.mean() if level == "mean" else values.quantile(_QUANTILES[level])) if len(values) else 0.0
            measured[f"{name}.{level}"], ratios[f"{name}.{level}"] = found, found / limit
    duration_s = max(float(requests["finish_s"].max() - requests["arrival_s"].min()), 1e-9)
    tokens_per_s = float(requests["num_output"].sum()) / duration_s / share
    kept = meets(latency, slo)
    if targets.attainment is not None:
        found = float(kept.mean())
        measured["attainment"] = found
        ratios["attainment"] = _missing(1 - found, 1 - targets.attainment)
    if targets.output_tokens_per_s is not None:
        measured["output_tokens_per_s"] = tokens_per_s
        ratios["output_tokens_per_s"] = targets.output_tokens_per_s / tokens_per_s
    has_slo = any((slo.ttft_s, slo.tpot_s, slo.e2e_s))
    goodput = float(kept.sum()) / duration_s / share if has_slo else math.nan
    return Outcome(ratios, measured, tokens_per_s, goodput)


def _missing(found: float, allowed: float) -> float:
    """Requests that miss their limits over those that may."""
    if allowed > 0:
        return found / allowed
    return 0.0 if found == 0 else _WORST
