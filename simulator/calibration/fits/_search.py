"""The search that all attention fits share: coefficients of one kernel, its errors on kernels of
shapes that were left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import AttentionFit
from simulator.validation.context import Batches, Phase, context_s
from simulator.work.context_kernels import ContextKernel

SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
ACCELERATORS = {"h100": "h100-sxm", "b200": "b200-sxm"}
FAMILIES = {"h100": "hopper", "b200": "blackwell"}
_COMMAND = "moesim calibrate published"
_SEED, _DIGITS = 7, 3
_SCALE = 0.1
"""Errors (of the logarithm) beyond this count linearly, not squared."""
_BOUNDS = {
    "compute_fraction": (0.05, 1.0),
    "memory_fraction": (0.05, 1.0),
    "overlap": (1.0, 6.0),
    "longest_rows": (1.0, 256.0),
    "module_s": (1e-7, 1e-3),
}


class Problem(NamedTuple):
    """Measured batches of one kind of kernel on one accelerator."""

    accelerator: AcceleratorSpec
    looking: Sequence[ContextKernel]
    phase: Phase
    batches: Batches
    measured_s: NDArray[np.float64]
    beside_s: NDArray[np.float64]
    """Priced already: matrix products of a block that was timed whole."""
    is_module: NDArray[np.bool_]
    """Whether it was."""

    def predict(self, coefficients: AttentionFit, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Seconds of some rows."""
        kernels = [
            (self.accelerator, coefficients, looking, self.phase) for looking in self.looking
        ]
        module_s = np.where(self.is_module[rows], coefficients.module_s, 0.0)
        return context_s(self.batches.take(rows), kernels) + self.beside_s[rows] + module_s


def entry(
    problem: Problem,
    start: dict[str, float],
    given: dict[str, Any],
    shapes: NDArray[np.int64],
    num_folds: int,
) -> dict[str, Any]:
    """The best coefficients, and their errors where whole shapes are left out in turn.

    Args:
        start: where the search begins, for every coefficient that is searched.
        given: fields that are known.
        shapes: number of each row's shape, from 0.
    """
    fitted = _search(problem, start, given, np.ones(len(shapes), dtype=bool))
    begun = {name: getattr(fitted, name) for name in start}
    folds = (np.random.default_rng(_SEED).permutation(shapes.max() + 1) % num_folds)[shapes]
    predicted = np.empty(len(shapes))
    for fold in range(num_folds):
        held = folds == fold
        predicted[held] = problem.predict(_search(problem, begun, given, ~held), held)
    error = predicted / problem.measured_s - 1
    low, high = np.quantile(problem.measured_s / predicted, [0.1, 0.9])
    return {
        "kind": "fitted",
        "accelerator": problem.accelerator.name,
        "command": _COMMAND,
        "num_rows": len(shapes),
        "median_error": _rounded(float(np.median(np.abs(error)))),
        "p90_error": _rounded(float(np.quantile(np.abs(error), 0.9))),
        "bias": _rounded(float(np.median(error))),
        "band": [_rounded(float(low)), _rounded(float(high))],
        **{name: value for name, value in fitted if name in start or name in given},
    }


def _search(
    problem: Problem, start: dict[str, float], given: dict[str, Any], rows: NDArray[np.bool_]
) -> AttentionFit:
    measured = np.log(problem.measured_s[rows])

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        values = dict(zip(start, np.exp(logs).tolist(), strict=True))
        return np.log(problem.predict(_unchecked(given | values), rows)) - measured

    bounds = [_BOUNDS.get(name, (value * 1e-6, value * 1e4)) for name, value in start.items()]
    lowest, highest = np.log(np.array(bounds).T)
    first = np.clip(np.log(np.array(list(start.values()))), lowest + 1e-6, highest - 1e-6)
    best = least_squares(
        errors, first, bounds=(lowest, highest), loss="soft_l1", f_scale=_SCALE, max_nfev=60
    )
    found = {
        name: _rounded(value) for name, value in zip(start, np.exp(best.x).tolist(), strict=True)
    }
    return _unchecked(given | found)


def _unchecked(values: dict[str, Any]) -> AttentionFit:
    return AttentionFit.model_construct(kind="fitted", source="", **values)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
