"""Imbalance of a plan under uniform routing: the part that chance alone gives at a batch size, to
compare with the skew of the plan's own routing.
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.deployment.plan import DeploymentPlan
from simulator.work.uniform_load import UniformImbalance, draw_uniform_imbalance

_GRID = np.unique(np.geomspace(1, POOL_TOKENS, 29).astype(np.int64))
"""Numbers of tokens at which expectations are drawn for many batches at once; between neighbours,
at most a factor of 1.5 apart, they follow a straight line over the logarithm of the tokens."""


def uniform_imbalance(plan: DeploymentPlan, num_tokens: int) -> UniformImbalance | None:
    """Draw the imbalance of one batch of ``num_tokens`` under uniform routing, on the plan's own
    experts, ranks and placement; ``None`` for a dense model.

    A batch above the pool's tokens is represented by these in proportion, and scatters as they do.
    """
    placement = plan.placement
    if placement.experts is None or placement.model.moe is None:
        return None
    sampled = min(num_tokens, POOL_TOKENS)
    return draw_uniform_imbalance(
        placement.experts.placed.rank_LP[0],  # layers have the same numbers of slots on their ranks
        placement.model.moe.top_k,
        sampled,
        placement.rng("uniform routing", sampled),
    )


def mean_uniform_imbalances(plan: DeploymentPlan, tokens_S: Floats) -> Floats:
    """Expected imbalance of many batches under uniform routing, ``[S]``; NaN for a dense model.

    Args:
        tokens_S: tokens of each batch, at least 1.
    """
    if plan.placement.experts is None or not len(tokens_S):
        return np.full(len(tokens_S), np.nan)
    first = np.searchsorted(_GRID, tokens_S.min(), side="right") - 1
    end = np.searchsorted(_GRID, min(float(tokens_S.max()), POOL_TOKENS)) + 1
    grid = _GRID[first:end]
    drawn = [uniform_imbalance(plan, int(tokens)) for tokens in grid]
    means = [found.mean for found in drawn if found is not None]
    return np.interp(np.log(tokens_S), np.log(grid), means)
