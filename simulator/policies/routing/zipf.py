"""Zipf routing: popularity falls as a power of the rank."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from simulator.base.frozen import Frozen
from simulator.base.quantities import Power
from simulator.config.ffns.moe import MoE
from simulator.policies.routing import Router
from simulator.policies.routing._popularity import by_popularity


class Zipf(Frozen):
    """The ``n``-th most popular expert of a layer gets a share of ``n ** -exponent``; every layer
    has its own order.

    Tokens are independent. Fitted over all experts of a layer: 0.5-0.7 for DeepSeek-V2-Lite on one
    kind of text (up to 1.06 on translation) and 1.06 for gpt-oss-20b; a power law puts too much on
    the first expert, which ``lognormal`` does not.
    """

    exponent: Power = Field(examples=[0.6])
    """Power of the rank by which popularity falls; 0 is uniform."""

    def prepare(self, moe: MoE, num_layers: int, rng: np.random.Generator) -> Router:
        share_LE = np.tile(np.arange(1.0, moe.num_experts + 1) ** -self.exponent, (num_layers, 1))
        return by_popularity(moe, rng.permuted(share_LE, axis=1)[None])
