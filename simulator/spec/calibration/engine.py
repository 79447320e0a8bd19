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


def engine_fit(table: dict[str, EngineFit], engine: str, otherwise: EngineFit) -> EngineFit:
    """The entry of an engine and version: ``trtllm@1.2.0rc6`` takes ``trtllm@1.2`` where there is one, else ``trtllm``."""
    name, _, version = engine.partition("@")
    keys = [key for key in table if key.startswith(f"{name}@") and version.startswith(key.partition("@")[2])]
    return table[max(keys, key=len)] if keys else table.get(name, otherwise)
