"""Log-normal popularity, with persistence and affinity: the synthetic router that resembles
measured ones.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import Ratio, Spread, value_range
from simulator.config.ffns.moe import MoE
from simulator.config.routing import MEDIAN_SIGMA
from simulator.policies.routing import Router
from simulator.policies.routing._popularity import MAX_TOPICS, with_affinity, with_persistence

_MOST_CHANCES = 1 << 25
"""Most probabilities held at once, by domain, layer, topic and expert: 256 MiB, of which drawing
takes a few."""


class Lognormal(Frozen):
    """Each domain and layer draws its experts' popularity once, log-normally; it then stays fixed
    in time.

    That is how measured routing behaves: stable within a kind of text, nearly uncorrelated between
    kinds and between layers.
    """

    sigma: Spread = Field(default=MEDIAN_SIGMA, examples=[0.65])
    """Spread (standard deviation of the logarithm) of popularity; 0 is uniform. Absent = the median
    of measured models."""
    num_domains: Annotated[int, value_range(1, 4096, "kinds of text")] = 1
    """Number of kinds of text, each with its own popularity; every run of tokens is of one of them,
    drawn evenly."""
    persistence: Annotated[float, value_range(0, 0.999)] = 0.0
    """Probability that a token keeps an expert of the previous token in its run, so the share of
    experts that consecutive tokens have in common. The part that popularity and affinity cause by
    themselves counts towards it, and is its floor."""
    affinity: Ratio = 0.0
    """Probability that a token picks an expert from its own topic instead of the whole layer;
    experts of one topic (up to 16 topics a layer, or experts in pairs) are then used together more
    often than their popularity explains."""

    def prepare(self, moe: MoE, num_layers: int, rng: np.random.Generator) -> Router:
        self._check_size(moe, num_layers)
        share_DLE = np.exp(
            self.sigma * rng.standard_normal((self.num_domains, num_layers, moe.num_experts))
        )
        router = with_affinity(moe, share_DLE, self.affinity, rng)
        return with_persistence(router, self.persistence, rng) if self.persistence > 0 else router

    def _check_size(self, moe: MoE, num_layers: int) -> None:
        topics = MAX_TOPICS if self.affinity > 0 else 1
        of_one = topics * num_layers * moe.num_experts
        if self.num_domains * of_one > _MOST_CHANCES:
            raise UserError(
                f"routing kind 'lognormal': num_domains ({self.num_domains:,}) must be at most "
                f"{max(1, _MOST_CHANCES // of_one):,} kinds of text with {num_layers} layers of "
                f"{moe.num_experts:,} experts"
            )
