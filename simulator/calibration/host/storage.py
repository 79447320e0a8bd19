"""Timing of this machine's disk, by reads of single experts from a file of them."""

from __future__ import annotations

import shutil
import tempfile

import numpy as np
import torch

from simulator.config.host import Storage
from simulator.runtime.layers.expert_file import ExpertFile

_EXPERT_BYTES = 1 << 22
"""Bytes of a read: an expert of a model that a machine without GPU runs."""
_EXPERTS = 64
"""Experts of the file, 256 MiB in all."""
_PASSES = 3
"""Times that each is read, in another order each time."""


def time_storage(source: str) -> Storage:
    """Time reads of experts, one after the other, past the system's cache."""
    file, rng = ExpertFile(_EXPERTS, _EXPERT_BYTES), np.random.default_rng(0)
    try:
        for expert in range(_EXPERTS):
            weights = rng.integers(0, 256, _EXPERT_BYTES, dtype=np.uint8)
            file.write(expert, torch.from_numpy(weights))
        file.flush()
        for _ in range(_PASSES):
            for expert in rng.permutation(_EXPERTS).tolist():
                file.read(expert)
        rate = _PASSES * _EXPERTS * _EXPERT_BYTES / file.read_s
    finally:
        file.close()
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return Storage(
        kind="measured", source=source, bytes_per_s=float(f"{rate:.3g}"), free_bytes=float(free)
    )
