"""From measured moments to sums of seconds: least squares of the relative error, no amount costing less than nothing."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from simulator.runtime.calibration.layers import Samples
from simulator.spec.host import MatrixTable, Steps


def fit_steps(samples: Samples, matrix: MatrixTable, names: tuple[str, ...], source: str) -> Steps:
    """What moments take beyond their matrices.

    Args:
        names: amounts that it may depend on; a constant is always among them.
    """
    measured = np.array(samples.seconds)
    products = np.array(
        [
            sum(float(matrix.seconds_for(np.array([rows]), size, working)[0]) * count for rows, size, count in entry)
            for entry, working in zip(samples.matrices, samples.working_bytes, strict=True)
        ]
    )
    columns = np.array([[1.0, *(amounts.get(name, 0.0) for name in names)] for amounts in samples.amounts])
    scale = np.maximum(columns.max(axis=0), 1e-30)
    found, _ = nnls(columns / scale / measured[:, None], (measured - products) / measured)
    seconds = found / scale
    error = np.abs(products + columns @ seconds - measured) / measured
    return Steps(
        kind="fitted",
        source=source,
        median_error=float(np.median(error)),
        seconds={"call": float(seconds[0]), **{name: float(value) for name, value in zip(names, seconds[1:], strict=True)}},
    )
