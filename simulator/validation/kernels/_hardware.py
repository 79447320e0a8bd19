"""Names that measurements give to GPUs, as the files in ``cluster_configs`` call them."""

from __future__ import annotations

import re
from functools import cache

from simulator.data import available_files
from simulator.errors import UserError
from simulator.spec.accelerator import AcceleratorSpec, load_accelerator
from simulator.spec.calibration import Calibration, load_calibration

_SAYS_NOTHING = re.compile(
    r"nvidia|amd|instinct|geforce|tesla|quadro|gpu|tensor|core|blackwell|hopper|server|edition|workstation|oam|ac|hbm\d\w*|nvl\d+|sxm\d*"
)
"""Words of a name that tell no two files apart. ``sxm`` is one since PCIe cards say what they are."""
_MEMORY = re.compile(r"(\d+)gi?b")
_SAME_MEMORY = 0.1
"""Names round what files give exactly; 40 GB are not 80."""


@cache
def accelerator_name(gpu: str) -> str | None:
    """The accelerator file for a GPU as tables or ``nvidia-smi`` name it; ``None`` if there is none.

    >>> [accelerator_name(gpu) for gpu in ("h100_sxm", "NVIDIA H100 80GB HBM3", "NVIDIA A100 80GB PCIe", "gb200_sxm", "L40S")]
    ['h100-sxm', 'h100-sxm', 'a100-pcie', 'gb200', 'l40s']
    >>> accelerator_name("NVIDIA A100-SXM4-40GB"), accelerator_name("NVIDIA H100 NVL")
    (None, None)
    """
    files = available_files("cluster_configs/accelerators")
    words = re.findall(r"[a-z0-9]+", gpu.lower())
    told = [word for word in words if not _SAYS_NOTHING.fullmatch(word) and not _MEMORY.fullmatch(word)]
    plain = "-".join(told)
    name = next((name for name in ("-".join(words), plain, f"{plain}-sxm") if name in files), None)
    memory = next((float(found[1]) * 1e9 for word in words if (found := _MEMORY.fullmatch(word))), None)
    if name is None or memory is None:
        return name
    has = load_accelerator(name, f"GPU '{gpu}'").memory_bytes
    return name if abs(has / memory - 1.0) < _SAME_MEMORY else None


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
