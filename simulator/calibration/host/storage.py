"""Timing of this machine's disk, by reads of single experts from a file of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from simulator.calibration.host.fit import find_spread
from simulator.config.host import Storage
from simulator.runtime.layers.cached_experts import ExpertFile

_EXPERT_BYTES = 1 << 22
"""Bytes of a read: an expert of a model that a machine without GPU runs."""
_EXPERTS = 64
"""Experts of the file, 256 MiB in all."""


@contextmanager
def write_experts() -> Iterator[ExpertFile]:
    """Write a file of experts, which is removed on leaving."""
    file, rng = ExpertFile(_EXPERTS, _EXPERT_BYTES), np.random.default_rng(0)
    try:
        for expert in range(_EXPERTS):
            weights = rng.integers(0, 256, _EXPERT_BYTES, dtype=np.uint8)
            file.write(expert, torch.from_numpy(weights))
        file.flush()
        yield file
    finally:
        file.close()


def time_reads(file: ExpertFile, turn: int) -> float:
    """Bytes per second of reads of all experts, one after the other, past the system's cache, in
    another order each turn.
    """
    before_s = file.read_s
    for expert in np.random.default_rng(turn).permutation(_EXPERTS).tolist():
        file.read(expert)
    return _EXPERTS * _EXPERT_BYTES / (file.read_s - before_s)


def describe_storage(rates: Sequence[float], source: str) -> Storage:
    """The storage whose reads were timed, a rate a round."""
    return Storage(
        kind="measured",
        source=source,
        spread=find_spread(rates),
        bytes_per_s=float(f"{np.median(rates):.3g}"),
        free_bytes=float(shutil.disk_usage(tempfile.gettempdir()).free),
    )
