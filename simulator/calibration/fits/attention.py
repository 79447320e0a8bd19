"""Fits the tables ``attention``: grouped-query kernels on H100 and B200 by phase and format of the
cache; latent ones beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.calibration.fits._latent import latent_entries
from simulator.calibration.fits._search import ACCELERATORS, FAMILIES, SOURCE, Problem, entry
from simulator.config.accelerator import load_accelerator
from simulator.validation.context import KV_FORMATS, PHASES, Phase
from simulator.validation.kernels.attention import SIZES, batches_of, kernel_of_shape

_TABLE = "attention.csv.gz"
_FOLDS = 6
_SHAPE = ["num_heads", "num_key_value_heads", "head_dim"]

_START: dict[Phase, dict[str, float]] = {
    "prefill": {
        "compute_fraction": 0.6,
        "softmax_s": 3e-11,
        "memory_fraction": 0.8,
        "floor_s": 10e-6,
        "row_s": 1e-8,
        "append_s": 1e-9,
    },
    "decode": {
        "compute_fraction": 0.4,
        "memory_fraction": 0.9,
        "floor_s": 10e-6,
        "overlap": 1.5,
        "row_s": 1e-8,
        "sequence_s": 1e-6,
        "append_s": 1e-9,
        "split_s": 2e-6,
    },
}
_GIVEN: tuple[tuple[str, Phase, str, dict[str, Any]], ...] = (
    ("h100", "prefill", "bf16", {"tile_rows": 32, "longest_rows": 128.0}),
    ("h100", "prefill", "fp8", {"tile_rows": 32, "longest_rows": 128.0}),
    ("h100", "decode", "bf16", {"window_block": 128.0, "split_entries": 128.0}),
    ("h100", "decode", "fp8", {"window_block": 128.0, "split_entries": 128.0}),
    ("b200", "prefill", "bf16", {"tile_rows": 128, "longest_rows": 128.0}),
    ("b200", "prefill", "fp8", {"tile_rows": 128, "longest_rows": 128.0, "computed_as": "fp8"}),
    ("b200", "decode", "bf16", {"split_entries": 256.0}),
    ("b200", "decode", "fp8", {"split_entries": 256.0}),
)
"""How kernels divide their work. Hopper's put the query heads of a group into one tile, so that few
tokens fill it; on H100 an fp8 cache makes nothing faster than bf16 arithmetic could be."""


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables ``attention`` of ``hopper`` and ``blackwell``, by engine and kernel."""
    rows = pd.read_csv(folder / _TABLE)
    is_decode = (rows["phase"].map(PHASES) == "decode") | (
        rows["isl"] == 1
    )  # a prompt of one token runs decode's kernels
    tables: dict[str, dict[str, Any]] = {}
    for gpu, phase, kv, given in _GIVEN:
        is_kind = (rows["gpu"] == gpu) & (rows["kv_cache_dtype"].map(KV_FORMATS) == kv)
        here = rows[is_kind & (is_decode == (phase == "decode"))].reset_index(drop=True)
        name = phase if kv == "bf16" else f"{phase}_{kv}"
        tables.setdefault(FAMILIES[gpu], {"any": {}})["any"][name] = _entry(
            here, gpu, phase, kv, given
        )
    for family, engines in latent_entries(folder).items():
        for engine, entries in engines.items():
            tables[family].setdefault(engine, {}).update(entries)
    return tables


def _entry(
    rows: pd.DataFrame, gpu: str, phase: Phase, kv: str, given: dict[str, Any]
) -> dict[str, Any]:
    shapes: NDArray[np.int64] = np.asarray(rows.groupby(_SHAPE).ngroup(), dtype=np.int64)
    kernels = rows[[*_SHAPE, "window_size"]].drop_duplicates().reset_index(drop=True)
    which = rows.merge(kernels.reset_index(), on=[*_SHAPE, "window_size"], how="left")[
        "index"
    ].to_numpy()
    problem = Problem(
        load_accelerator(ACCELERATORS[gpu], gpu),
        [kernel_of_shape([int(size) for size in row], kv) for row in kernels.to_numpy()],
        phase,
        batches_of(rows[list(SIZES)].to_numpy(dtype=float).T, which),
        rows["latency_ms"].to_numpy() / 1e3,
        beside_s=np.zeros(len(rows)),
        is_module=np.zeros(len(rows), dtype=bool),
    )
    seen = rows["isl"] + rows["step"]
    what = (
        f"{len(rows):,} {phase} attention kernels on {gpu.upper()} with a {kv} "
        f"cache, {shapes.max() + 1} head shapes"
    )
    domain = {
        name: [int(rows[name].min()), int(rows[name].max())]
        for name in ("batch_size", "num_heads", "head_dim")
    }
    return {
        "source": f"{what}, {SOURCE}",
        **entry(problem, _START[phase], given, shapes, _FOLDS),
        "domain": {**domain, "context": [int(seen.min()), int(seen.max())]},
    }
