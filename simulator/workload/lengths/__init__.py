"""Length distributions of prompts and answers, one in a file."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class LengthDistribution(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def draw(
        self, num_requests: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw ``(num_input, num_output)`` of ``num_requests`` requests, all at least 1."""
        ...
