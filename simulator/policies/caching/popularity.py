"""Static hot list: the experts that an earlier recording chose most stay for good."""

from __future__ import annotations

from simulator.base.arrays import Floats
from simulator.base.frozen import Frozen
from simulator.policies.caching import ExpertUses


class Popularity(Frozen):
    """The cache begins with each layer's most chosen experts of an earlier recording, and never
    changes; missing experts pass through fast memory without staying, or are computed where they
    are.

    Placed so by Fiddler (arXiv:2402.07033), and by hot lists for llama.cpp.
    """

    def rate_experts(self, uses: ExpertUses) -> Floats:
        return uses.earlier_LE
