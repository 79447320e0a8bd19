"""Group-limited routing on a model that was not trained with it: tokens stay in a few groups of
experts.
"""

from __future__ import annotations

import numpy as np

from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import Groups, Spread
from simulator.config.ffns.moe import MoE
from simulator.policies.routing import Router
from simulator.policies.routing.lognormal import Lognormal


class GroupLimited(Frozen):
    """Tokens pick their experts from the best ``num_limited_groups`` of ``num_groups`` groups,
    whatever the model does.

    A group is a block of consecutive experts, scored by the sum of its two best experts
    (DeepSeek-V3, arXiv 2412.19437). With contiguous placement a group is a node, so a token's
    copies go to at most ``num_limited_groups`` nodes. The defaults are DeepSeek-V3's.
    """

    num_groups: Groups = 8
    """Number of expert groups."""
    num_limited_groups: Groups = 4
    """Number of groups that a token may choose its experts from."""
    sigma: Spread = 0.0
    """Spread (standard deviation of the logarithm) of popularity, as of ``lognormal``; 0 is
    uniform."""

    def prepare(self, moe: MoE, num_layers: int, rng: np.random.Generator) -> Router:
        groups = {"num_groups": self.num_groups, "num_limited_groups": self.num_limited_groups}
        limited = validate(MoE, {**moe.model_dump(), **groups}, "routing kind 'group_limited'")
        return Lognormal(sigma=self.sigma).prepare(limited, num_layers, rng)
