"""Log-normal prompts and answers, independent of each other: the usual shape of chat traffic when
only two numbers are known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from simulator.base.frozen import Frozen
from simulator.workload.lengths._marginals import LogNormalMarginal


class LogNormal(Frozen):
    """Each side is given by its median and its 90th percentile or log-standard deviation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input": {"p50": 1000.0, "p90": 4000.0, "max": 8192},
                    "output": {"p50": 200.0, "sigma": 0.7},
                }
            ]
        }
    )

    input: LogNormalMarginal
    """Prompt tokens."""
    output: LogNormalMarginal
    """Generated tokens."""

    def draw(
        self, num_requests: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(num_input, num_output)``, each ``[num_requests]``."""
        z = rng.standard_normal((num_requests, 2))
        return self.input.at_normal(z[:, 0]), self.output.at_normal(z[:, 1])
