"""Prompt and answer lengths drawn together: long prompts often have short answers, and that changes
what a server needs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from simulator.base.frozen import Frozen
from simulator.workload.lengths._marginals import LogNormalMarginal, QuantileMarginal
from simulator.workload.reading import read_trace


class Joint(Frozen):
    """Give ``input``, ``output`` and their ``correlation``, or the ``path`` of a trace whose pairs
    are resampled.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input": {"p50": 1000.0, "p90": 4000.0},
                    "output": {"probabilities": [0.0, 1.0], "lengths": [1.0, 64.0]},
                    "correlation": -0.5,
                }
            ]
        }
    )

    input: LogNormalMarginal | QuantileMarginal | None = None
    """Prompt tokens."""
    output: LogNormalMarginal | QuantileMarginal | None = None
    """Generated tokens."""
    correlation: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Correlation of the two normal deviates behind the lengths (a Gaussian copula), a ratio from
    -1 to 1. Spearman's rank correlation ``s`` of the lengths needs ``2 sin(pi s / 6)`` here."""
    path: str | None = None
    """A trace of any known format; only its lengths are used."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [part is not None for part in (self.input, self.output, self.correlation)]
        if (self.path is None and not all(given)) or (self.path is not None and any(given)):
            raise ValueError("give either input, output and correlation, or a path")
        return self

    def draw(
        self, num_requests: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(num_input, num_output)``, each ``[num_requests]``."""
        if self.path is not None:
            source = read_trace(Path(self.path))
            rows = (rng.random(num_requests) * source.num_requests).astype(np.int64)
            return source.num_input[rows], source.num_output[rows]
        assert self.input is not None
        assert self.output is not None
        assert self.correlation is not None
        z = rng.standard_normal((num_requests, 2))
        z_output = self.correlation * z[:, 0] + math.sqrt(1 - self.correlation**2) * z[:, 1]
        return self.input.at_normal(z[:, 0]), self.output.at_normal(z_output)
