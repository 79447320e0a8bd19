"""Writes a calibration as the TOML that the simulator reads."""

from __future__ import annotations

from simulator.base.writing import toml_text
from simulator.config.host import HostCalibration


def calibration_toml(calibration: HostCalibration) -> str:
    """The file's text."""
    return toml_text(
        calibration.model_dump(exclude_none=True),
        "Written by moesim calibrate cpu. Times are seconds.",
    )
