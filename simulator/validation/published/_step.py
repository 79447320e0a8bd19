"""One engine step of a large replica at the ``rank`` fidelity: every rank a process, links shared
by all traffic present.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.probe import forecast, make_even_batch
from simulator.step.prices import Prices
from simulator.validation.published._serve import make, tell_shares

_OF_PROMPTS = {"attention": "attention over prompts"}
"""Phases that other kernels compute where a sequence has more than one new token."""


class Step(NamedTuple):
    """A step that has run."""

    plan: DeploymentPlan
    seconds: float
    shares: dict[str, float]
    """Shares of the time by phase, or by the calibration entry that prices it where that differs
    for prompts."""
    imbalance: float
    """Token-expert pairs of the busiest rank over the mean rank's, mean over layers."""

    @property
    def because(self) -> str:
        """The time and what it is made of, in words."""
        return (
            f"step of {self.seconds * 1e3:.1f} ms: {tell_shares(self.shares)}; busiest "
            f"rank {self.imbalance:.2f} x the mean"
        )


def run_one(deployment: Mapping[str, Any], num_sequences: int, new: int, context: int) -> Step:
    """Run a step in which every data-parallel rank has ``num_sequences`` with ``context`` tokens in
    the cache, computing ``new`` each.

    Raises:
        UserError: if the deployment is impossible.
    """
    plan = _plan(json.dumps(deployment, sort_keys=True))
    sequences_d = [num_sequences] * plan.placement.layout.attention_dp
    (times,) = forecast(plan, [(make_even_batch(sequences_d, new, context), 0)])
    priced_as = _OF_PROMPTS if new > 1 else {}
    shares = {
        priced_as.get(phase, phase): seconds / times.duration_s
        for phase, seconds in times.phases.items()
    }
    tokens_d = np.full(plan.placement.layout.attention_dp, num_sequences * new, dtype=np.int64)
    return Step(plan, times.duration_s, shares, _imbalance(Prices(plan.placement, 1), tokens_d))


def _imbalance(prices: Prices, tokens_d: np.ndarray) -> float:
    layers = range(prices.placement.model.num_moe_layers)
    steps = [prices.expert_step(layer, tokens_d, 0).pairs_R for layer in layers]
    return float(np.mean([pairs_R.max() / pairs_R.mean() for pairs_R in steps]))


@lru_cache(maxsize=2)
def _plan(deployment: str) -> DeploymentPlan:
    return make(json.loads(deployment))
