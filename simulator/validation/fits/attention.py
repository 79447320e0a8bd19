"""Fits the tables ``attention``: grouped-query kernels on H100 and B200, by phase and format of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.spec.accelerator import AcceleratorSpec, load_accelerator
from simulator.spec.calibration import AttentionFit
from simulator.validation.kernels._context import KV_FORMATS, PHASES, Batches, Phase, context_s
from simulator.validation.kernels.attention import SIZES, batches_of, lookback
from simulator.work.lookback import Lookback

_TABLE = "attention.csv.gz"
_SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
_COMMAND = "moesim calibrate published"
_FOLDS, _SEED, _DIGITS = 6, 7, 3
_SCALE = 0.1
"""Errors (of the logarithm) beyond this count linearly, not squared."""
_SHAPE = ["num_heads", "num_key_value_heads", "head_dim"]

_PREFILL = {
    "compute_fraction": 0.6,
    "softmax_s": 3e-11,
    "memory_fraction": 0.8,
    "floor_s": 10e-6,
    "row_s": 1e-8,
    "append_s": 1e-9,
}
_DECODE = {
    "compute_fraction": 0.4,
    "memory_fraction": 0.9,
    "floor_s": 10e-6,
    "overlap": 1.5,
    "row_s": 1e-8,
    "sequence_s": 1e-6,
    "append_s": 1e-9,
}
_BOUNDS = {"compute_fraction": (0.05, 1.0), "memory_fraction": (0.05, 1.0), "overlap": (1.0, 6.0)}


class _Job(NamedTuple):
    family: str
    gpu: str
    phase: Phase
    kv: str
    given: dict[str, Any]
    """What is known of the kernel: how it divides its work, what it computes in."""


_DIVIDED: tuple[tuple[str, str, Phase, dict[str, Any]], ...] = (
    ("hopper", "h100", "prefill", {"tile_rows": 32, "longest_rows": 128.0}),
    ("hopper", "h100", "decode", {"window_block": 128.0}),
    ("blackwell", "b200", "prefill", {"tile_rows": 128, "longest_rows": 128.0}),
    ("blackwell", "b200", "decode", {}),
)
_JOBS = tuple(_Job(family, gpu, phase, kv, given) for family, gpu, phase, given in _DIVIDED for kv in ("bf16", "fp8"))
_COMPUTED_AS = {("b200", "prefill", "fp8"): "fp8"}
"""Kernels that compute in another format than bf16; H100's with an fp8 cache are no faster than with bf16."""
_ACCELERATORS = {"h100": "h100-sxm", "b200": "b200-sxm"}


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables ``attention`` of ``hopper`` and ``blackwell``, by engine and kernel."""
    rows = pd.read_csv(folder / _TABLE)
    is_one = rows["isl"] == 1
    tables: dict[str, dict[str, Any]] = {}
    for job in _JOBS:
        # A prompt of one token runs the kernels of decode: it is not fitted twice.
        is_phase = (rows["phase"].map(PHASES) == job.phase) & (is_one == (job.phase == "decode"))
        here = rows[(rows["gpu"] == job.gpu) & is_phase & (rows["kv_cache_dtype"].map(KV_FORMATS) == job.kv)]
        name = job.phase if job.kv == "bf16" else f"{job.phase}_{job.kv}"
        tables.setdefault(job.family, {"any": {}})["any"][name] = _entry(
            job._replace(given=job.given | {"computed_as": _COMPUTED_AS.get((job.gpu, job.phase, job.kv), "bf16")}),
            here.reset_index(drop=True),
        )
    return tables


class _Problem(NamedTuple):
    accelerator: AcceleratorSpec
    looking: list[Lookback]
    phase: Phase
    batches: Batches
    measured_s: NDArray[np.float64]

    def predict(self, coefficients: AttentionFit, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        return context_s(self.batches.take(rows), [(self.accelerator, coefficients, k, self.phase) for k in self.looking])


def _entry(job: _Job, rows: pd.DataFrame) -> dict[str, Any]:
    shapes = rows.groupby(_SHAPE).ngroup().to_numpy()
    kernels = rows[[*_SHAPE, "window_size"]].drop_duplicates().reset_index(drop=True)
    which = rows.merge(kernels.reset_index(), on=[*_SHAPE, "window_size"], how="left")["index"].to_numpy()
    problem = _Problem(
        load_accelerator(_ACCELERATORS[job.gpu], job.gpu),
        [lookback([int(size) for size in row], job.kv) for row in kernels.to_numpy()],
        job.phase,
        batches_of(rows[list(SIZES)].to_numpy(dtype=float).T, which),
        rows["latency_ms"].to_numpy() / 1e3,
    )
    everything = np.ones(len(rows), dtype=bool)
    start = {"prefill": _PREFILL, "decode": _DECODE}[job.phase]
    fitted = search(problem, start, job.given, everything)
    folds = np.random.default_rng(_SEED).permutation(shapes.max() + 1)[shapes] % _FOLDS
    predicted = np.empty(len(rows))
    begun = {name: getattr(fitted, name) for name in start}
    for fold in range(_FOLDS):
        held = folds == fold
        predicted[held] = problem.predict(search(problem, begun, job.given, ~held), held)
    what = f"{len(rows):,} {job.phase} attention kernels on {job.gpu.upper()} with a {job.kv} cache, {shapes.max() + 1} head shapes"
    domain = {name: [int(rows[name].min()), int(rows[name].max())] for name in ("batch_size", "num_heads", "head_dim")}
    seen = rows["isl"] + rows["step"]
    return {
        "kind": "fitted",
        "source": f"{what}, vLLM kernels, {_SOURCE}",
        "command": _COMMAND,
        "num_rows": len(rows),
        **residuals(predicted, problem.measured_s),
        **{name: value for name, value in fitted if name in start or name in job.given},
        "domain": {**domain, "context": [int(seen.min()), int(seen.max())]},
    }


def residuals(predicted_s: NDArray[np.float64], measured_s: NDArray[np.float64]) -> dict[str, Any]:
    """What an entry says of its errors."""
    error = predicted_s / measured_s - 1
    low, high = np.quantile(measured_s / predicted_s, [0.1, 0.9])
    return {
        "median_error": _rounded(float(np.median(np.abs(error)))),
        "p90_error": _rounded(float(np.quantile(np.abs(error), 0.9))),
        "bias": _rounded(float(np.median(error))),
        "band": [_rounded(float(low)), _rounded(float(high))],
    }


def search(problem: _Problem, start: dict[str, float], given: dict[str, Any], rows: NDArray[np.bool_]) -> AttentionFit:
    """The coefficients that fit ``rows`` best, rounded."""
    measured = np.log(problem.measured_s[rows])

    def built(coefficients: NDArray[np.float64]) -> AttentionFit:
        values = {name: _rounded(value) for name, value in zip(start, coefficients.tolist(), strict=True)}
        return _unchecked(given | values)

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        values = dict(zip(start, np.exp(logs).tolist(), strict=True))
        return np.log(problem.predict(_unchecked(given | values), rows)) - measured

    bounds = [_BOUNDS.get(name, (value * 1e-6, value * 1e4)) for name, value in start.items()]
    lowest, highest = np.log(np.array(bounds).T)
    first = np.clip(np.log(np.array(list(start.values()))), lowest + 1e-6, highest - 1e-6)
    best = least_squares(errors, first, bounds=(lowest, highest), loss="soft_l1", f_scale=_SCALE, max_nfev=60)
    return built(np.exp(best.x))


def _unchecked(values: dict[str, Any]) -> AttentionFit:
    return AttentionFit.model_construct(kind="fitted", source="", **values)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
