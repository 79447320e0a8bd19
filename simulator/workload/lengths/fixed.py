"""Every request alike: what benchmarks of the form "1k in, 1k out" use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from simulator.base.frozen import Frozen
from simulator.base.quantities import Tokens


class Fixed(Frozen):
    """Constant lengths."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"num_input": 1024, "num_output": 128}]}
    )

    num_input: Tokens
    """Prompt tokens."""
    num_output: Tokens
    """Generated tokens."""

    def draw(
        self, num_requests: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(num_input, num_output)``, each ``[num_requests]``."""
        return np.full(num_requests, self.num_input), np.full(num_requests, self.num_output)
