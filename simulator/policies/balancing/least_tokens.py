"""To the replica with the fewest unfinished tokens, output lengths known (an oracle's bound on what
balancing can give).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen


class LeastTokens(Frozen):
    """Ties go to the first."""

    needs_load: ClassVar[bool] = True

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> LeastTokens:
        return self

    def choose(self, outstanding: NDArray[np.int64], outstanding_tokens: NDArray[np.int64]) -> int:
        return int(outstanding_tokens.argmin())
