"""The serving engine's own time."""

from __future__ import annotations

from simulator.spec.base import NonNegative
from simulator.spec.calibration.fit import Fit


class EngineFit(Fit):
    """The serving engine's own time."""

    step_s: NonNegative
    """Between two forward passes: scheduling, input preparation, sampling, output handling."""
    sequence_s: NonNegative
    """Added for each sequence in the step."""
    layer_s: NonNegative
    """Small kernels of one layer (norms, rotary embedding, residuals), beyond their bytes."""
