"""Gaps between arrivals with a given coefficient of variation (CV), and windows filled with a given
number of them.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Pattern = Literal["gamma", "weibull"]
Cv = Annotated[float, Field(ge=0.001, le=1000)]
"""Coefficient of variation of gaps: standard deviation over mean; 0.001 is a metronome. Production
traffic has 0.5 to 15."""

_SHAPES = (0.05, 200.0)
"""Weibull shapes that are searched: CV from about 370,000 down to 0.0064."""


def weibull_cv(shape: float) -> float:
    """CV of a Weibull variable: ``sqrt(G(1 + 2/k) / G(1 + 1/k)^2 - 1)``, with ``G`` the gamma
    function.

    >>> round(weibull_cv(1.0), 12)  # shape 1 is the exponential distribution
    1.0
    """
    return math.sqrt(math.expm1(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)))


def weibull_shape(cv: float) -> float:
    """The Weibull shape that has this CV, by bisection (the CV falls as the shape grows).

    Raises:
        ValueError: if the CV is outside what the search covers.

    >>> round(weibull_shape(1.0), 6)
    1.0
    """
    low, high = (math.log(shape) for shape in _SHAPES)
    if not weibull_cv(_SHAPES[1]) <= cv <= weibull_cv(_SHAPES[0]):
        raise ValueError(
            f"cv must lie between {weibull_cv(_SHAPES[1]):.3g} and {weibull_cv(_SHAPES[0]):.3g} "
            f"for Weibull gaps, got {cv}"
        )
    for _ in range(80):
        middle = (low + high) / 2
        if weibull_cv(math.exp(middle)) > cv:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def unit_gaps(
    pattern: Pattern, cv: float, num_gaps: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Independent gaps of mean 1 and the given CV."""
    if pattern == "gamma":
        shape = cv**-2
        return rng.gamma(shape, 1 / shape, num_gaps)
    shape = weibull_shape(cv)
    return rng.weibull(shape, num_gaps) / math.gamma(1 + 1 / shape)


def fill_window(
    mean_requests: float, duration_s: float, pattern: Pattern, cv: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Arrival times within a window of ``duration_s``, from 0.

    The number of requests is ``mean_requests`` rounded up or down at random, so that the rate is
    kept exactly on average; the gaps are then scaled to the window. (Cutting a renewal process at
    the window's end instead would add about ``(cv^2 - 1) / 2`` requests to each window: for a CV of
    6.7 that is 22.)
    """
    num_requests = int(mean_requests + rng.random())
    gaps = unit_gaps(pattern, cv, num_requests + 1, rng)
    total = float(gaps.sum())
    if total <= 0:  # a CV so high that every gap underflows: all arrive together
        return np.full(num_requests, rng.random() * duration_s)
    return np.cumsum(gaps[:-1]) * (duration_s / total)
