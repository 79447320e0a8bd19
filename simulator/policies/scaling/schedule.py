"""Scaling at given seconds, such as those of a day's hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Self

from pydantic import model_validator

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, SomeOf
from simulator.base.quantities import Replicas, Seconds
from simulator.policies.scaling import STARTUP_S, PoolLoad


class _ReplicasFrom(Frozen):
    """Number of replicas from a second on."""

    at_s: Seconds
    """Seconds since the first arrival at which replicas are launched or drain."""
    replicas: Replicas
    """Replicas that shall serve from then on."""


class Schedule(Frozen):
    """Numbers of replicas written down beforehand, with which a launch is as early as one wants."""

    changes: SomeOf[_ReplicasFrom]
    """Numbers of replicas by their time, ``{ at_s = 3600, replicas = 4 }``, in order; one at 0 s
    says how many serve when the run begins, which are all of the deployment's without it."""
    startup_s: Seconds = STARTUP_S
    """Seconds from the launch of a replica until it serves: process, weights and graphs. Published
    for 32 GPUs: two to three minutes."""
    replaces_failed: bool = True
    """Whether another replica is launched for one that has stopped, if GPUs are free."""

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        times_s = [change.at_s for change in self.changes]
        if any(later <= sooner for sooner, later in pairwise(times_s)):
            raise ValueError("changes must be in order of time, no two at one second")
        return self

    def begin(self, most: int) -> int:
        wanted = max(change.replicas for change in self.changes)
        if wanted > most:
            raise UserError(
                f"changes ask for {wanted} replicas, but the deployment has {most} at most; let "
                f"replicas be {wanted}"
            )
        first = self.changes[0]
        return first.replicas if first.at_s == 0 else most

    def looks(self) -> Iterator[float]:
        return (change.at_s for change in self.changes if change.at_s > 0)

    def decide(self, loads: Sequence[PoolLoad], most: int) -> int:
        past = [change.replicas for change in self.changes if change.at_s <= loads[-1].at_s]
        return past[-1] if past else most
