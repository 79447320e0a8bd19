"""No scaling: all replicas of the deployment serve from the beginning to the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from simulator.base.frozen import Frozen
from simulator.policies.scaling import PoolLoad


class Fixed(Frozen):
    """All replicas at every time; those that fail come back once they are repaired."""

    startup_s: ClassVar[float] = 0.0
    replaces_failed: ClassVar[bool] = False

    def begin(self, most: int) -> int:
        return most

    def looks(self) -> Iterator[float]:
        return iter(())

    def decide(self, loads: Sequence[PoolLoad], most: int) -> int:
        return most
