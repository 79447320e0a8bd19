"""One side of a request (prompt or answer): a distribution of token counts that others combine."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import MOST_TOKENS, Length, Ratio, Tokens, value_range

_Z90 = 1.2815515655446004
"""90th percentile of the standard normal distribution."""


class LogNormalMarginal(Frozen):
    """Log-normal token counts: the median, and how wide; clipped to ``min .. max``, or to
    the longest request that can be served.
    """

    p50: Length
    """Median, tokens."""
    p90: Length | None = None
    """90th percentile, tokens; give this or ``sigma``."""
    sigma: Annotated[float, value_range(1e-6, 10)] | None = None
    """Standard deviation of the natural logarithm; give this or ``p90``."""
    min: Tokens = 1
    """Shortest, tokens."""
    max: Tokens | None = None
    """Longest, tokens."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.p90 is None) == (self.sigma is None):
            raise ValueError("give either p90 or sigma beside p50")
        if self.p90 is not None and self.p90 <= self.p50:
            raise ValueError(f"p90 ({self.p90}) must be above p50 ({self.p50})")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) must be at least min ({self.min})")
        return self

    def at_normal(self, z: NDArray[np.float64]) -> NDArray[np.int64]:
        """Token counts at standard normal deviates ``z``."""
        sigma = (
            math.log(self.p90 / self.p50) / _Z90 if self.p90 is not None else float(self.sigma or 0)
        )
        highest = float(self.max) if self.max is not None else float(MOST_TOKENS)
        with np.errstate(over="ignore"):
            return as_tokens(np.clip(self.p50 * np.exp(sigma * z), self.min, highest))


class QuantileMarginal(Frozen):
    """A table of percentiles; between two of them the length grows geometrically with the
    probability.
    """

    probabilities: Annotated[tuple[Ratio, ...], Field(strict=False, min_length=2)]
    """Probabilities from 0 (the shortest) to 1 (the longest), rising."""
    lengths: Annotated[tuple[Length, ...], Field(strict=False, min_length=2)]
    """Tokens at each probability, never falling."""

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        if len(self.probabilities) != len(self.lengths):
            raise ValueError(
                f"probabilities ({len(self.probabilities)}) and lengths "
                f"({len(self.lengths)}) must be as many"
            )
        if self.probabilities[0] != 0 or self.probabilities[-1] != 1:
            raise ValueError("probabilities must begin with 0 and end with 1")
        if any(b <= a for a, b in itertools.pairwise(self.probabilities)):
            raise ValueError("probabilities must rise")
        if any(b < a for a, b in itertools.pairwise(self.lengths)):
            raise ValueError("lengths must not fall as the probability rises")
        return self

    def at_probability(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Token counts at probabilities ``u``."""
        return as_tokens(np.exp(np.interp(u, self.probabilities, np.log(self.lengths))))

    def at_normal(self, z: NDArray[np.float64]) -> NDArray[np.int64]:
        """Token counts at standard normal deviates ``z``."""
        from scipy.special import ndtr

        return self.at_probability(ndtr(z))


def as_tokens(lengths: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round to whole tokens, at least 1."""
    return np.maximum(1, np.rint(lengths)).astype(np.int64)
