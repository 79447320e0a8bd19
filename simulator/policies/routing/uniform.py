"""Uniform routing: every expert is equally likely, as in a perfectly balanced model."""

from __future__ import annotations

import numpy as np

from simulator.base.frozen import Frozen
from simulator.config.ffns.moe import MoE
from simulator.policies.routing import Router
from simulator.policies.routing._popularity import by_popularity


class Uniform(Frozen):
    """Every token uses ``K`` experts drawn evenly, independently of every other token.

    The best case of any placement; no measured model is this even (Mixtral comes close: busiest
    expert 1.04-1.33 times the mean, MC-MoE and OLMoE counts).
    """

    def prepare(self, moe: MoE, num_layers: int, rng: np.random.Generator) -> Router:
        return by_popularity(moe, np.ones((1, num_layers, moe.num_experts)))
