"""Names that measurements give to GPUs, as the files in ``cluster_configs`` call them."""

from __future__ import annotations

from functools import cache

from simulator.data import available_files
from simulator.errors import UserError
from simulator.spec.accelerator import AcceleratorSpec, load_accelerator
from simulator.spec.calibration import Calibration, load_calibration

_OTHER_NAMES = {"rtx_pro_6000_server": "rtx-pro-6000"}


@cache
def accelerator_name(gpu: str) -> str | None:
    """The accelerator file for a GPU as tables name it: ``h100``, ``h100_sxm``, ``gb200_sxm``, ``l40s``; ``None`` if there is none."""
    files = available_files("cluster_configs/accelerators")
    plain = _OTHER_NAMES.get(gpu.lower(), gpu.lower().replace("_", "-"))
    return next((name for name in (plain, f"{plain}-sxm", plain.removesuffix("-sxm")) if name in files), None)


@cache
def calibrated(gpu: str, engine: str) -> tuple[AcceleratorSpec, Calibration] | None:
    """The accelerator that a table calls ``gpu`` and what ``engine`` achieves on it; ``None`` where either is unknown."""
    name = accelerator_name(gpu)
    if name is None:
        return None
    accelerator = load_accelerator(name, f"GPU '{gpu}'")
    try:
        return accelerator, load_calibration(accelerator.calibration, name).on(engine)
    except UserError:  # a machine that moesim calibrate timed: it has tables of its own
        return None
