"""How likely a deployment that meets the targets in simulation does not start, or misses one, going
by how far off its calibration was elsewhere.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from simulator.deployment.memory import start_probability
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.samples import Z_80, bands_of
from simulator.planner.trial import Outcome


def starts(plan: DeploymentPlan, longest_tokens: int) -> float:
    """Probability that all pools start: that each one's KV cache holds the longest request."""
    return math.prod(
        start_probability(pool.serving.capacity, longest_tokens) for pool in plan.pools
    )


def risk(plan: DeploymentPlan, outcome: Outcome, longest_tokens: int) -> float:
    """Probability that it does not start, or that the target which is most at risk is missed.

    Measured over simulated is taken as log-normal with the 80 % bands of the engine's fit, or of
    the pools' where prompts have their own: of the time to first token for targets on that, of the
    time per token for all others.
    """
    bands = bands_of(plan, plan.prefill is not None)
    found = 0.0
    for name, ratio in outcome.ratios.items():
        band = bands.first_token if name.startswith("ttft_s") else bands.token
        low, high = (math.log(edge) for edge in band)
        if ratio > 0 and high > low:
            score = (-math.log(ratio) - (low + high) / 2) / ((high - low) / 2 / Z_80)
            found = max(found, 1.0 - NormalDist().cdf(score))
    return 1.0 - starts(plan, longest_tokens) * (1.0 - found)
