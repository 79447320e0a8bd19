"""One engine step of a large replica at the ``rank`` fidelity: every rank a process, links shared by all traffic present."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import simpy

from simulator.engine.fabric import FluidWires
from simulator.engine.rank import finish_step, run_step
from simulator.plan import Plan
from simulator.price import Prices
from simulator.program import Batch
from simulator.validation.published._serve import make


class Step(NamedTuple):
    """A step that has run."""

    plan: Plan
    seconds: float
    shares: dict[str, float]
    """Of the time, by phase."""
    imbalance: float
    """Token-expert pairs of the busiest rank over the mean rank's, mean over layers."""

    @property
    def because(self) -> str:
        """The time and what it is made of, in words."""
        parts = ", ".join(f"{phase} {share:.0%}" for phase, share in self.shares.items() if share >= 0.005)
        return f"step of {self.seconds * 1e3:.1f} ms: {parts}; busiest rank {self.imbalance:.2f} x the mean"


def even_batch(plan: Plan, num_sequences: int, new: int, context: int, is_decode: bool) -> Batch:
    """The same on every data-parallel rank: ``num_sequences`` with ``context`` tokens in the cache compute ``new`` each."""
    dp = plan.layout.attention_dp
    new_tokens = np.full(num_sequences, new, dtype=np.int64)
    cached = np.full(num_sequences, context, dtype=np.int64)
    flags = np.full(num_sequences, is_decode)
    return Batch((new_tokens,) * dp, (cached,) * dp, (flags,) * dp, np.full(dp, num_sequences, dtype=np.int64))


def run_one(deployment: Mapping[str, Any], num_sequences: int, new: int, context: int, *, is_decode: bool) -> Step:
    """Run a step.

    Raises:
        UserError: if the deployment is impossible.
    """
    plan = _plan(json.dumps(deployment, sort_keys=True))
    batch = even_batch(plan, num_sequences, new, context, is_decode)
    prices = Prices(plan, num_sequences * new)
    env = simpy.Environment()
    times = finish_step(env, run_step(env, FluidWires(env), prices.program(batch, 0), plan.layout.num_ranks))
    shares = {phase: seconds / times.duration_s for phase, seconds in times.phases.items()}
    return Step(plan, times.duration_s, shares, prices.loads(batch, 0)[0] if plan.experts else 1.0)


@lru_cache(maxsize=4)
def _plan(deployment: str) -> Plan:
    return make(json.loads(deployment))
