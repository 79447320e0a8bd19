"""Measured lengths, prompt and answer drawn independently of each other: from percentile tables or
from a trace file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, model_validator

from simulator.base.frozen import Frozen
from simulator.workload.lengths._marginals import QuantileMarginal
from simulator.workload.reading import read_trace


class Empirical(Frozen):
    """Give ``input`` and ``output`` tables, or the ``path`` of a trace whose lengths are
    resampled.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input": {"probabilities": [0.0, 0.5, 1.0], "lengths": [10.0, 100.0, 1000.0]},
                    "output": {"probabilities": [0.0, 1.0], "lengths": [1.0, 64.0]},
                }
            ]
        }
    )

    input: QuantileMarginal | None = None
    """Prompt tokens."""
    output: QuantileMarginal | None = None
    """Generated tokens."""
    path: str | None = None
    """A trace of any known format; only its lengths are used."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        tables = (self.input is not None) + (self.output is not None)
        if (self.path is None and tables != 2) or (self.path is not None and tables):
            raise ValueError("give either both input and output tables, or a path")
        return self

    def draw(
        self, num_requests: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(num_input, num_output)``, each ``[num_requests]``."""
        u = rng.random((num_requests, 2))
        if self.input is not None and self.output is not None:
            return self.input.at_probability(u[:, 0]), self.output.at_probability(u[:, 1])
        source = read_trace(Path(str(self.path)))
        rows = (u * source.num_requests).astype(np.int64)
        return source.num_input[rows[:, 0]], source.num_output[rows[:, 1]]
