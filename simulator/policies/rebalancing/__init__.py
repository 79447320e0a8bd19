"""Rebalancing of experts during a run, one policy in a file.

A policy states when it is asked, and then decides from the load since the last time where experts
shall lie; the engine moves them. While the experts of a replica move, it forms no step, unless the
policy has an attribute ``asynchronous`` that is true: then steps go on, and find the experts in
their new places when the last one has arrived; or has an attribute ``layers_per_chunk``: then so
many layers move at a time, with a step between. An attribute ``host_s_per_layer`` adds the engine's
own work for each layer that changes. With an attribute ``every_steps`` that is not ``None`` it is
asked after as many steps as :meth:`RebalancingPolicy.looks` yields, of the replica that has taken
most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.policies.placement import Placed

HOST_S_PER_LAYER = 0.0096
"""Seconds that vLLM's host takes for each layer that it rearranges: 260 ms for the 26 layers of
DeepSeek-V2-Lite over 8 H100 (vLLM #28369), of which its 20 GB of weights are on the links for 9."""


class ExpertLoad(NamedTuple):
    """Load of experts since the policy was asked last."""

    at_s: float
    """Seconds since the first arrival."""
    num_tokens: int
    """Tokens that all replicas of the pool have computed since the policy was asked last."""
    load_LE: NDArray[np.float64]
    """Expected number of tokens that have chosen each expert of each layer, ``[L, E]``, by the load
    profiles of the requests that the tokens are of."""
    placed: Placed
    """Current placement of experts, the same in every replica."""
    num_steps: int = 0
    """Steps so far of the replica that has taken most."""

    def measure_imbalance(self, placed: Placed) -> float:
        """Measure how uneven the load would be with another placement: the busiest rank's over the
        mean rank's, as a mean over layers that have any. Copies of an expert share its tokens.
        """
        load_LR = np.zeros((len(self.load_LE), placed.num_ranks))
        for layer, load_E in enumerate(self.load_LE):
            expert_P = placed.expert_LP[layer]
            copies_E = np.bincount(expert_P, minlength=len(load_E))
            np.add.at(load_LR[layer], placed.rank_LP[layer], load_E[expert_P] / copies_E[expert_P])
        mean_L = load_LR.mean(axis=1)
        is_loaded_L = mean_L > 0
        if not is_loaded_L.any():
            return 1.0
        return float((load_LR.max(axis=1)[is_loaded_L] / mean_L[is_loaded_L]).mean())


class RebalancingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def looks(self) -> Iterator[float]:
        """Yield the times at which the policy is asked, in seconds since the first arrival or in
        steps, in order, possibly without end: a run takes no more than it needs.
        """
        ...

    def decide(self, load: ExpertLoad, rng: np.random.Generator) -> Placed | None:
        """Decide the placement of experts, in as many slots as before; ``None`` to leave them.

        Args:
            rng: for policies that draw.
        """
        ...
