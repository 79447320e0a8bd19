"""Least squares in logarithms, leaving out, and the entry that both give a calibration: one way for
all families of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.validation.kernels import COMMAND

GPUS = {"h100": ("hopper", "h100-sxm"), "b200": ("blackwell", "b200-sxm")}
"""Calibration and accelerator of the GPUs that were timed, by their names in tables."""
_SEED = 7
"""Seed of the parts that shapes are drawn into; any would do."""
_DIGITS = 3
"""Significant digits of a coefficient: fits on other samples of the rows differ in the third."""
_MARGIN = 1e-6
"""Least distance of a start from its bounds, in logarithms: on a bound a search does not move."""

Tables = dict[str, dict[str, dict[str, Any]]]
"""Entries of one table of calibrations: by calibration, engine and name."""
Floats = NDArray[np.float64]
Chosen = NDArray[np.bool_]
Groups = NDArray[np.integer[Any]]
"""Number of each row's group, from 0."""
Values = dict[str, float]
"""Coefficients by name."""


class Solution(NamedTuple):
    """Coefficients that fit best, rounded, and what the search minimised."""

    values: Values
    cost: float


def round_off(value: float) -> float:
    """Round to the digits that a coefficient is known to."""
    return float(f"{value:.{_DIGITS}g}")


def search(
    predict: Callable[[Values], Floats],
    measured_s: Floats,
    start: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    scale: float,
    **options: Any,
) -> Solution:
    """Minimise the errors of the logarithm of seconds over the logarithms of coefficients.

    Args:
        start: where the search begins, for every coefficient that is searched.
        scale: error beyond which errors count linearly, not squared: tables hold single readings
            that are off by two times.
        options: of :func:`scipy.optimize.least_squares`.
    """
    log_measured = np.log(measured_s)

    def errors(logs: Floats) -> Floats:
        values = dict(zip(start, np.exp(logs).tolist(), strict=True))
        return np.asarray(np.log(predict(values)) - log_measured)

    with np.errstate(divide="ignore"):  # a bound of zero is none
        lowest, highest = np.log(np.array([bounds[name] for name in start]).T)
    first = np.clip(np.log(list(start.values())), lowest + _MARGIN, highest - _MARGIN)
    best = least_squares(
        errors, first, bounds=(lowest, highest), loss="soft_l1", f_scale=scale, **options
    )
    found = zip(start, np.exp(best.x).tolist(), strict=True)
    return Solution({name: round_off(value) for name, value in found}, float(best.cost))


def make_folds(shapes: Groups, num_folds: int) -> Groups:
    """Fold ``[n]`` of each row: whole shapes, numbered from 0, drawn into so many folds."""
    fold_of_shape = np.random.default_rng(_SEED).permutation(shapes.max() + 1) % num_folds
    return np.asarray(fold_of_shape[shapes])


def leave_out(groups: ArrayLike, predict: Callable[[Chosen, Chosen], Floats]) -> Floats:
    """Seconds ``[n]`` of every row by a fit without the row's group.

    Args:
        predict: from the rows to fit on and the rows to predict to seconds of the latter.
    """
    names = np.asarray(groups)
    predicted = np.full(len(names), np.nan)
    for name in np.unique(names):
        held = names == name
        predicted[held] = predict(~held, held)
    return predicted


def residuals(
    measured_s: Floats, predicted_s: Floats, groups: ArrayLike, band: list[float] | None = None
) -> dict[str, Any]:
    """Errors of predictions by fits that had not seen the rows, and their 80 % band.

    Args:
        groups: of the rows, which were left out together.
        band: of the fit where it is not that of these errors.
    """
    error, ratios = predicted_s / measured_s - 1, measured_s / predicted_s
    return {
        "num_rows": len(error),
        "median_error": round_off(float(np.median(np.abs(error)))),
        "p90_error": round_off(float(np.quantile(np.abs(error), 0.9))),
        "bias": round_off(float(np.median(error))),
        "band": band or band_of(ratios),
        **_coverage(ratios, np.asarray(groups), band),
    }


def _coverage(ratios: Floats, groups: NDArray[Any], band: list[float] | None) -> dict[str, float]:
    """Share of rows inside their band, made of other groups' rows where none is given; nothing
    where there is one group.
    """
    inside = np.zeros(len(ratios), dtype=bool)
    for name in np.unique(groups):
        own = groups == name
        if band is None and own.all():
            return {}
        low, high = band or band_of(ratios[~own])
        inside[own] = (ratios[own] >= min(low, 1.0)) & (ratios[own] <= max(high, 1.0))
    return {"covered": round_off(float(inside.mean()))}


def band_of(ratios: Floats) -> list[float]:
    """10th and 90th percentile of measured over predicted seconds."""
    return [round_off(float(value)) for value in np.quantile(ratios, [0.1, 0.9])]


def entry(
    source: str, accelerator: AcceleratorSpec, errors: Mapping[str, Any], **fields: Any
) -> dict[str, Any]:
    """Entry of a calibration: what it was fitted on, its errors, then its coefficients."""
    return {
        "kind": "fitted",
        "source": source,
        "accelerator": accelerator.name,
        "command": COMMAND,
        **errors,
        **fields,
    }


def assume(
    fitted: Mapping[str, Any], source: str, names: Sequence[str], share: float = 1.0
) -> dict[str, Any]:
    """Entry that nothing was measured for: some fields of a fitted one, and a share of the peaks
    that it reaches.
    """
    kept = {name: value for name, value in fitted.items() if name in names}
    for name in ("compute_fraction", "memory_fraction"):
        kept[name] = round_off(kept[name] * share)
    return {"kind": "assumed", "source": source, **kept}


def domain_of(columns: Mapping[str, ArrayLike]) -> dict[str, list[int]]:
    """Smallest and largest of what was measured, by the names of a fit's domain."""
    return {name: [int(np.min(values)), int(np.max(values))] for name, values in columns.items()}


def accelerator_of(gpu: str) -> AcceleratorSpec:
    """Accelerator that a table of timings calls ``gpu``."""
    return load_accelerator(GPUS[gpu][1], gpu)
