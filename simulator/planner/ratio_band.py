"""How sure the ratio of two deployments' speeds is: what both rest on cancels, the rest does not.

Errors are those of :mod:`simulator.planner.samples`, which are normal in logarithms, so nothing has
to be drawn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from simulator.deployment.plan import DeploymentPlan
from simulator.planner.samples import Z_80, Floats, bands_of, kernels_of, loading, own_of


class Error(NamedTuple):
    """What one deployment's steps may be off."""

    weights: dict[str, float]
    """Of each term's error, by whose kernels it has, and of its own; squares add up to 1."""
    middle: float
    """Of the logarithm of measured over predicted, and its standard deviation."""
    spread: float
    gives: float = 1.0
    """By how many per cent fewer tokens there are where steps take one per cent longer; infinite
    where there may be none."""


class Margin(NamedTuple):
    """A ratio's 80 % band, and the probability that it is above 1; ``None`` where there is no
    telling.
    """

    low: float | None
    high: float | None
    above: float | None


def error_of(plan: DeploymentPlan, terms: Floats, gives: float = 1.0) -> Error:
    """Of a step.

    Args:
        terms: ``[8]`` its :class:`~simulator.planner.closed_form.Terms`.
    """
    low, high = (math.log(edge) for edge in bands_of(plan, plan.prefill is not None).token)
    shares = terms / terms.sum()
    parts = {
        name: float(share)
        for name, share in zip(kernels_of(plan), shares, strict=True)
        if share > 0
    }
    return Error(loading(parts, own_of(plan)), (low + high) / 2, (high - low) / 2 / Z_80, gives)


def margin(ratio: float, one: Error, other: Error) -> Margin:
    """Of the first's tokens over the second's.

    >>> alone, apart = Error({"a": 1.0}, 0.0, 0.1), Error({"b": 1.0}, 0.0, 0.1)
    >>> margin(1.0, alone, alone)
    Margin(low=1.0, high=1.0, above=0.5)
    >>> [round(value, 3) for value in margin(1.1, alone, apart)]
    [0.918, 1.319, 0.75]
    """
    if not (math.isfinite(one.gives) and math.isfinite(other.gives)):
        return Margin(None, None, None)
    first, second = one.gives * one.spread, other.gives * other.spread
    shared = sum(weight * other.weights.get(name, 0.0) for name, weight in one.weights.items())
    variance = first**2 + second**2 - 2 * first * second * shared
    middle = math.log(ratio) - one.gives * one.middle + other.gives * other.middle
    spread = math.sqrt(variance) if variance > 1e-12 else 0.0  # what is left of rounding
    low, high = (math.exp(middle + z * spread) for z in (-Z_80, Z_80))
    above = (
        0.5 * (1 + math.erf(middle / spread / math.sqrt(2)))
        if spread
        else 0.5 * (1 + float(np.sign(round(middle, 9))))
    )
    return Margin(min(low, ratio), max(high, ratio), above)
