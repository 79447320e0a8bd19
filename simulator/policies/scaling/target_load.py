"""Scaling by the load of a replica, as Kubernetes' horizontal pod autoscaler does it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from typing import Annotated, Literal, Self

from pydantic import model_validator

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import YEAR_S, Extent, Ratio, Replicas, Seconds, value_range
from simulator.policies.scaling import STARTUP_S, PoolLoad


class TargetLoad(Frozen):
    """Number of replicas that brings the load of each to a target, ``ceil(replicas x load /
    target)``, unless the load is within a tolerance of it; and never fewer than a look of the last
    minutes asked for.

    The rule and its defaults are those of Kubernetes' horizontal pod autoscaler
    (kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale): looks every 15 s
    (``--horizontal-pod-autoscaler-sync-period``), a tolerance of 0.1
    (``--horizontal-pod-autoscaler-tolerance``), five minutes before fewer are there
    (``--horizontal-pod-autoscaler-downscale-stabilization``). Replicas that do not serve yet count
    as such without load. Its limit on how fast the number grows (doubling, or four, in 15 s) is
    left out.
    """

    target: Extent
    """Load that each replica shall have, in the unit of ``metric``."""
    metric: Literal["requests", "tokens"] = "requests"
    """Load of a replica: ``requests`` that it has and has not finished, queued ones among them, as
    Ray Serve's ``target_ongoing_requests``; or prompt and output ``tokens`` of these, output
    lengths known (an oracle's)."""
    min_replicas: Replicas = 1
    """Fewest replicas, which also serve when the run begins."""
    max_replicas: Replicas | None = None
    """Most replicas; absent = the deployment's ``replicas``."""
    every_s: Annotated[float, value_range(1e-3, YEAR_S, "seconds")] = 15.0
    """Seconds from one look at the load to the next."""
    tolerance: Ratio = 0.1
    """Relative difference of the load to its target up to which nothing changes."""
    stabilization_s: Seconds = 300.0
    """Seconds before a look in which no look may have asked for more replicas, if some are to
    leave."""
    startup_s: Seconds = STARTUP_S
    """Seconds from the launch of a replica until it serves: process, weights and graphs. Published
    for 32 GPUs: two to three minutes."""
    replaces_failed: bool = True
    """Whether another replica is launched for one that has stopped, if GPUs are free."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) must be at least min_replicas "
                f"({self.min_replicas})"
            )
        return self

    def begin(self, most: int) -> int:
        wanted = max(self.min_replicas, self.max_replicas or 0)
        if wanted > most:
            raise UserError(
                f"{'max' if self.max_replicas else 'min'}_replicas ({wanted}) is more than the "
                f"deployment's replicas ({most}); let these be {wanted}"
            )
        return self.min_replicas

    def looks(self) -> Iterator[float]:
        return (number * self.every_s for number in count(1))

    def decide(self, loads: Sequence[PoolLoad], most: int) -> int:
        now = loads[-1]
        wanted = self._recommend(now, most)
        recent = takewhile(
            lambda load: load.at_s > now.at_s - self.stabilization_s, reversed(loads)
        )
        # Waiting keeps what is there, and launches nothing.
        kept = min(now.replicas, max((self._recommend(load, most) for load in recent), default=0))
        return max(wanted, kept)

    def _recommend(self, load: PoolLoad, most: int) -> int:
        """Number of replicas by the load at one instant."""
        total = load.num_requests if self.metric == "requests" else load.num_tokens
        wanted, meant = load.replicas, self.target * load.replicas
        if abs(total - meant) > self.tolerance * meant:
            wanted = math.ceil(total / self.target)
        return max(self.min_replicas, min(wanted, self.max_replicas or most))
