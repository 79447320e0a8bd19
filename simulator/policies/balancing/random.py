"""To a replica drawn at random."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen


class Random(Frozen):
    """Blind to load."""

    needs_load: ClassVar[bool] = False

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> _Draws:
        return _Draws(num_replicas, rng)


class _Draws:
    def __init__(self, num_replicas: int, rng: np.random.Generator) -> None:
        self._num_replicas = num_replicas
        self._rng = rng

    def choose(self, outstanding: NDArray[np.int64], outstanding_tokens: NDArray[np.int64]) -> int:
        return int(self._rng.integers(self._num_replicas))
