"""To each replica in turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen


class RoundRobin(Frozen):
    """Blind to load."""

    needs_load: ClassVar[bool] = False

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> _Turns:
        return _Turns(itertools.cycle(range(num_replicas)))


class _Turns:
    def __init__(self, turns: Iterator[int]) -> None:
        self._turns = turns

    def choose(self, outstanding: NDArray[np.int64], outstanding_tokens: NDArray[np.int64]) -> int:
        return next(self._turns)
