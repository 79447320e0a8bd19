"""Cost models that price by shares of peaks, and refuse a calibration of a machine's times."""

from __future__ import annotations

from simulator.base.errors import UserError
from simulator.config.calibration import Calibration
from simulator.config.host import HostRates


def check_shares(calibration: Calibration | HostRates, key: str, kind: str) -> Calibration:
    """Return a calibration that holds shares of peaks.

    Args:
        key: key of the deployment that chose the cost model: ``compute`` or ``communication``.
        kind: the cost model.

    Raises:
        UserError: if the calibration holds times of a machine, naming what prices by those.
    """
    if isinstance(calibration, HostRates):
        raise UserError(
            f"{key} kind '{kind}' needs shares of an accelerator's peaks, and the calibration "
            f"holds times of a machine; leave {key} out, which prices by those"
        )
    return calibration
