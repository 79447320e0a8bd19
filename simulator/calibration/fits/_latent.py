"""The entries ``mla_*`` of the tables ``attention``: latent attention by engine, phase and format
of the cache.

TensorRT-LLM's kernels were timed alone and inside whole blocks, SGLang's alone, vLLM's inside
blocks only. A block's matrix products are priced by the calibration's table ``gemm`` as it is in
the files, so that one is fitted first. TensorRT-LLM's entries stand for engines that have none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.calibration.fits._search import ACCELERATORS, FAMILIES, SOURCE, Problem, entry
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import load_calibration
from simulator.validation.context import KV_FORMATS, PHASES, Batches, Phase
from simulator.validation.kernels.mla import DECODES_ONE, GEMM_FORMATS, kernel_of_shape, matrices_s

_TABLE = "mla.csv.gz"
_FOLDS = 4
_ANY = "any"

_START: dict[Phase, dict[str, float]] = {
    "prefill": {
        "compute_fraction": 0.7,
        "softmax_s": 2e-11,
        "memory_fraction": 0.7,
        "floor_s": 15e-6,
        "row_s": 2e-8,
        "longest_rows": 64.0,
        "append_s": 1e-10,
    },
    "decode": {
        "compute_fraction": 0.7,
        "memory_fraction": 0.8,
        "floor_s": 12e-6,
        "overlap": 1.5,
        "row_s": 1e-7,
        "sequence_s": 4e-6,
        "split_s": 1e-6,
    },
}
_MODULE = {"module_s": 1e-5}
_SPLIT = {
    ("h100", "decode"): {"split_entries": 128.0},
    ("b200", "decode"): {"split_entries": 256.0},
}
_BEFORE_CONVERTING = 0.87
"""Share of the memory rate that SGLang's kernels reach where they need not convert: what is taken
while the passes are searched for."""


class _Job(NamedTuple):
    gpu: str
    engine: str
    phase: Phase
    kv: str
    given: dict[str, Any]
    computed: str = ""
    """Where an engine has kernels that compute in several formats: the other one."""
    converts: bool = False
    """Whether the cache is converted before it is read."""


_TILES: dict[str, Any] = {"tile_rows": 128}
_FP8: dict[str, Any] = {"computed_as": "fp8"}
_ABSORBS: dict[str, Any] = {"absorbs": True}
_JOBS = (
    _Job("h100", "trtllm", "prefill", "bf16", _TILES),
    _Job("h100", "trtllm", "prefill", "fp8", _TILES),
    _Job("h100", "trtllm", "decode", "bf16", {}),
    _Job("h100", "trtllm", "decode", "fp8", _FP8),
    _Job("h100", "sglang", "prefill", "bf16", _ABSORBS),
    _Job("h100", "sglang", "prefill", "fp8", _ABSORBS),
    _Job("h100", "sglang", "decode", "bf16", {}),
    _Job("h100", "sglang", "decode", "fp8", {}, converts=True),
    _Job("h100", "vllm", "prefill", "bf16", _TILES),
    _Job("h100", "vllm", "prefill", "fp8", _TILES),
    _Job("h100", "vllm", "decode", "bf16", {}),
    _Job("h100", "vllm", "decode", "fp8", {}),
    _Job("b200", "trtllm", "prefill", "bf16", _TILES),
    _Job("b200", "trtllm", "prefill", "fp8", _TILES | _FP8),
    _Job("b200", "trtllm", "decode", "bf16", {}),
    _Job("b200", "trtllm", "decode", "fp8", _FP8),
    _Job("b200", "sglang", "prefill", "bf16", _TILES),
    _Job("b200", "sglang", "prefill", "fp8", _TILES | _FP8),
    _Job("b200", "sglang", "decode", "bf16", {}),
    _Job("b200", "sglang", "decode", "fp8", _FP8),
    _Job("b200", "vllm", "prefill", "bf16", _TILES),
    _Job("b200", "vllm", "prefill", "fp8", _TILES),
    _Job("b200", "vllm", "prefill", "fp8", _TILES | _FP8, "fp8"),
    _Job("b200", "vllm", "decode", "bf16", {}),
    _Job("b200", "vllm", "decode", "fp8", _FP8),
)


def latent_entries(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """By calibration, engine and name of the entry."""
    rows = pd.read_csv(folder / _TABLE, low_memory=False)
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for job in _JOBS:
        engines = tables.setdefault(FAMILIES[job.gpu], {})
        name = f"mla_{job.phase}" + ("" if job.kv == "bf16" else f"_{job.kv}")
        alone = engines.get(_ANY, {}).get(name)
        found = _entry(
            job, _rows_of(job, rows), alone["floor_s"] if job.engine == "vllm" and alone else None
        )
        engine = _ANY if job.engine == "trtllm" else job.engine
        engines.setdefault(engine, {})[f"{name}_{job.computed}" if job.computed else name] = found
    return tables


def _rows_of(job: _Job, rows: pd.DataFrame) -> pd.DataFrame:
    # A prompt of one token runs vLLM's kernels for decode.
    is_decode = (rows["phase"].map(PHASES) == "decode") | (
        (rows["isl"] == 1) & (rows["engine"] == DECODES_ONE)
    )
    is_phase = is_decode == (job.phase == "decode")
    is_kind = (
        (rows["gpu"] == job.gpu)
        & (rows["engine"] == job.engine)
        & (rows["kv_cache_dtype"].map(KV_FORMATS) == job.kv)
    )
    found = rows[is_phase & is_kind]
    if job.phase == "prefill":
        found = found[(found["mla_dtype"] == "fp8") == bool(job.computed)]
    return found.reset_index(drop=True)


def _entry(job: _Job, rows: pd.DataFrame, floor_s: float | None) -> dict[str, Any]:
    heads = np.array(sorted(rows["num_heads"].unique()))
    which: NDArray[np.int64] = np.searchsorted(heads, rows["num_heads"].to_numpy())
    is_module = rows["phase"].str.endswith("module").to_numpy()
    problem = Problem(
        load_accelerator(ACCELERATORS[job.gpu], job.gpu),
        [kernel_of_shape(int(num_heads), job.kv) for num_heads in heads],
        job.phase,
        Batches(
            rows["batch_size"].to_numpy(), rows["step"].to_numpy(), rows["isl"].to_numpy(), which
        ),
        rows["latency_ms"].to_numpy() / 1e3,
        _beside_s(job, rows, is_module),
        is_module,
    )
    start, given = (
        _START[job.phase] | (_MODULE if is_module.any() else {}),
        job.given | _SPLIT.get((job.gpu, job.phase), {}),
    )
    if job.converts:
        start = {name: value for name, value in start.items() if name != "memory_fraction"} | {
            "entry_passes": 10.0
        }
        given = given | {"memory_fraction": _BEFORE_CONVERTING}
    if floor_s is not None:  # blocks do not tell the kernel's floor from what else they take
        start, given = (
            {name: value for name, value in start.items() if name != "floor_s"},
            given | {"floor_s": floor_s},
        )
    seen = rows["isl"] + rows["step"]
    kinds = [
        f"{count:,} {word}"
        for count, word in ((int((~is_module).sum()), "kernels"), (int(is_module.sum()), "blocks"))
        if count
    ]
    what = (
        f"{' and '.join(kinds)} of latent {job.phase} attention on {job.gpu.upper()} with "
        f"a {job.kv} cache, {len(heads)} head counts"
    )
    domain = {
        name: [int(rows[name].min()), int(rows[name].max())] for name in ("batch_size", "num_heads")
    }
    return {
        "source": f"{what}, {job.engine}, {SOURCE}",
        **entry(problem, start, given, which, _FOLDS),
        "domain": {**domain, "context": [int(seen.min()), int(seen.max())]},
    }


def _beside_s(job: _Job, rows: pd.DataFrame, is_module: NDArray[np.bool_]) -> NDArray[np.float64]:
    accelerator = load_accelerator(ACCELERATORS[job.gpu], job.gpu)
    calibration = load_calibration(accelerator.calibration, job.gpu).on(job.engine)
    beside_s = np.zeros(len(rows))
    weights, heads = rows["gemm_type"].to_numpy(), rows["num_heads"].to_numpy()
    for dtype, num_heads in sorted(set(zip(weights[is_module], heads[is_module], strict=True))):
        at = np.flatnonzero(is_module & (weights == dtype) & (heads == num_heads))
        tokens = (rows["batch_size"] * rows["isl"]).to_numpy()[at]
        beside_s[at] = matrices_s(
            accelerator, calibration, int(num_heads), GEMM_FORMATS[dtype], tokens
        )
    return beside_s
