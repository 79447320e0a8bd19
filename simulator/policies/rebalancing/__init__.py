"""Rebalancing of experts during a run, one policy in a file.

A policy states when it is asked, and then decides from the load since the last time where experts
shall lie; the engine moves them, as the policy's :class:`MigrationRules` say.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated, NamedTuple, Protocol, Self

import numpy as np
from pydantic import model_validator

from simulator.base.arrays import Floats
from simulator.base.frozen import Frozen, Policy
from simulator.base.quantities import YEAR_S, Seconds, Steps, value_range
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
    load_LE: Floats
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


class MigrationRules(NamedTuple):
    """Attributes of a policy, all optional, that say how experts migrate."""

    asynchronous: bool = False
    """Whether steps go on while weights travel, and find experts in their new places when the last
    one has arrived; otherwise the replica forms no step."""
    layers_per_chunk: int | None = None
    """Layers whose experts move at a time, with a step between; ``None`` = all."""
    host_s_per_layer: float = 0.0
    """Seconds of the engine's own work for each layer that changes."""
    every_steps: int | None = None
    """Not ``None`` where :meth:`RebalancingPolicy.looks` yields steps, of the replica that has
    taken most."""
    placement: Policy | None = None
    """Table of the placement policy that experts are placed by; ``None`` = none."""


def migration_rules(policy: RebalancingPolicy) -> MigrationRules:
    """Read how a policy's experts migrate."""
    said = [name for name in MigrationRules._fields if hasattr(policy, name)]
    return MigrationRules(**{name: getattr(policy, name) for name in said})


class Migrating(Frozen):
    """Keys of policies that look at regular times."""

    every_s: Annotated[float, value_range(1e-3, YEAR_S, "seconds")] = 60.0
    """Seconds from one look to the next."""
    every_steps: Steps | None = None
    """Steps from one look to the next of the replica that takes most, as engines count them; absent
    = ``every_s`` counts."""
    host_s_per_layer: Seconds = HOST_S_PER_LAYER
    """Seconds of the engine's own work for each layer whose experts move: plans, indices and
    launches."""
    asynchronous: bool = False
    """Whether steps go on while weights travel, as with vLLM's ``use_async``; otherwise the replica
    waits."""
    layers_per_chunk: Annotated[int, value_range(1, 4096, "layers")] | None = None
    """Layers whose experts move at a time, with a step between (SGLang's
    ``--eplb-rebalance-layers-per-chunk``); absent = all at once."""

    @model_validator(mode="after")
    def _says_once(self) -> Self:
        seconds = sorted({"every_s", "window_s"} & self.model_fields_set)
        if self.every_steps is not None and seconds:
            raise ValueError(
                f"every_steps counts steps, and {seconds[0]} seconds; leave one of them out"
            )
        if self.asynchronous and self.layers_per_chunk is not None:
            raise ValueError(
                "layers_per_chunk moves experts between steps, and asynchronous during them; leave "
                "one of them out"
            )
        return self


def list_intervals(every: float, window: float) -> Iterator[float]:
    """Yield the end of every interval, and before it the beginning of its window where that is
    shorter.
    """
    for number in count(1):
        if window < every:
            yield number * every - window
        yield number * every
