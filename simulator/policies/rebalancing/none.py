"""No rebalancing: experts stay where the placement policy put them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simulator.base.frozen import Frozen
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad


class Never(Frozen):
    """No move at any time, as in engines without an expert balancer."""

    def looks(self) -> Iterator[float]:
        return iter(())

    def decide(self, load: ExpertLoad, rng: np.random.Generator) -> Placed | None:
        return None
