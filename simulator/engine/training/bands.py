"""Bands of a simulated step: how far off it may be by the errors of what prices it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from simulator.config.calibration import Calibration
from simulator.config.calibration.fit import Fit
from simulator.config.host import HostRates
from simulator.deployment.training.plan import TrainingPlan
from simulator.engine.training.step import TrainingStep

BACKWARD_RANGE = (1.7, 2.4)
"""Ratios of a backward matrix product's time to the forward one's that are held possible: two
products of the same size, somewhat faster where they need no launch of their own, somewhat slower
where operands are transposed or gradients are added up in fp32. Assumed."""
FRAMEWORK_RANGE = {False: (0.95, 1.10), True: (0.95, 1.35)}
"""Ratios of a step's seconds to those of its kernels and exchanges that are held possible, of dense
models and of mixtures of experts, for which frameworks run more small kernels and let the host wait
for counts of tokens. Assumed, after the published trainings were compared
(``workloads/validation/training.csv``)."""
_UNKNOWN = 1.3
"""Factor of a fit that states no band."""


def find_band(plan: TrainingPlan, step: TrainingStep) -> tuple[float, float]:
    """Find the factors of a step's 80 % band: each part may be off as its fit was on measurements,
    independently of the others, backward products by :data:`BACKWARD_RANGE`, and all of it by
    :data:`FRAMEWORK_RANGE`.

    Returns:
        Factors on the step's seconds, low and high.
    """
    if isinstance(plan.placement.calibration, HostRates):
        return 1 / _UNKNOWN, _UNKNOWN
    total = step.step_s
    parts = step.mean_parts
    shares = {name: parts[name] / total for name in _list_fits(plan)}
    wide = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    for name, fit in _list_fits(plan).items():
        for side, factor in zip(wide, fit.band or (1 / _UNKNOWN, _UNKNOWN), strict=True):
            side[0] += (shares[name] * math.log(factor)) ** 2
    # Of the products' time two thirds are backward passes, less where passes are made again.
    products = shares.get("dense", 0.0) + shares.get("experts", 0.0) + shares.get("attention", 0.0)
    ratio = plan.spec.backward_ratio
    forward = 1.0 + (plan.spec.recompute == "full")
    for side, other in zip(wide, BACKWARD_RANGE, strict=True):
        changed = (forward + other) / (forward + ratio)
        side[1] = (products * math.log(changed)) ** 2
    framework = FRAMEWORK_RANGE[plan.placement.experts is not None]
    for side, factor in zip(wide, framework, strict=True):
        side[2] = math.log(factor) ** 2
    low, high = (math.sqrt(sum(side)) for side in wide)
    return math.exp(-low), math.exp(high)


def _list_fits(plan: TrainingPlan) -> dict[str, Fit]:
    """List the fits that price parts of a step."""
    calibration = plan.placement.calibration
    return dict(_yield_fits(plan, calibration)) if isinstance(calibration, Calibration) else {}


def _yield_fits(plan: TrainingPlan, calibration: Calibration) -> Iterator[tuple[str, Fit]]:
    placement = plan.placement
    yield "dense", calibration.matrices(placement.precision.weights)
    yield "attention", calibration.matrices(placement.precision.weights)
    if placement.experts is not None and placement.model.moe is not None:
        moe = placement.model.moe
        yield "experts", calibration.experts(placement.precision.experts, moe.num_experts)
    if plan.spec.parallel.tp > 1:
        yield "collective", calibration.collective["all_reduce"]
