"""Fits the tables ``gemm`` on dense products of vLLM's kernels on H100 and B200."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.calibration.fits import COMMAND
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration.gemm import EagerLaunch, GemmFit
from simulator.cost.kernels.gemm import Operands, product_s
from simulator.validation.kernels.gemm import with_launch_s

_TABLE = "gemm.csv.gz"
_SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"

_FOLDS, _SEED = 5, 7
_DIGITS = 3
_SCALE = 0.05
"""Errors (of the logarithm) beyond this count linearly, not squared: tables hold single readings
that are off by two times."""

_PRODUCT = {
    "compute_fraction": 0.8,
    "memory_fraction": 0.8,
    "overlap": 2.5,
    "start_s": 5e-7,
    "sweep_width": 256.0,
}
_REREAD = {"reread": 40.0}
_FLOOR = {"floor_s": 4e-6}
_SPLIT = {"min_split_k": 4096.0}
_BYTES = {"quantise_bytes": 4.0}
_ROWS = {"quantise_row_s": 3e-7}
_BLOCKS = {"quantise_block_s": 6e-7}
_BOUNDS = {
    "compute_fraction": (0.1, 1.0),
    "memory_fraction": (0.1, 1.0),
    "overlap": (1.3, 5.0),
    "reread": (1.0, 400.0),
}
"""What is possible: the coefficients can stand in for each other, and the end of their trade is no
machine."""
_CUTLASS = ((1, 64, 64), (65, 64, 128), (129, 128, 128))
"""Tiles of vLLM's fp8 kernels for Hopper by number of rows; its times with few columns jump there,
in proportion to ``k``."""
_CACHE_BYTES = {"hopper": 50e6, "blackwell": 126e6}
"""L2 of H100 and H200 (NVIDIA H100 whitepaper), and of B200 (CUDA runtime)."""
_EAGER = {"seconds": 1e-4, "few_rows_s": 1e-4, "narrow_s": 1e-4}


class _Job(NamedTuple):
    family: str
    gpu: str
    measured_as: str
    dtype: str
    start: dict[str, float]
    """Coefficients that are fitted, and where the search for them starts."""
    what: str
    fixed: dict[str, Any] = {}
    eager: bool = False
    """Whether launching was timed too. It hides the floor, which is then that of per-tensor fp8:
    likewise two kernels."""

    @property
    def given(self) -> dict[str, Any]:
        return {"cache_bytes": _CACHE_BYTES[self.family]} | self.fixed


_FP8 = "fp8 GEMMs (one scale a tensor, the input converted first; kernels that do not split k)"
_BF16 = _PRODUCT | _REREAD | _FLOOR | _SPLIT
_PER_TENSOR = _PRODUCT | _FLOOR | _ROWS | _BLOCKS
_PER_BLOCK = _PRODUCT | _REREAD | _BYTES
_JOBS = (
    _Job("hopper", "h100", "bfloat16", "bf16", _BF16, "bf16 GEMMs"),
    _Job(
        "hopper", "h100", "fp8", "fp8", _PER_TENSOR, _FP8, fixed={"tiles": _CUTLASS, "reread": 0.0}
    ),
    _Job(
        "hopper", "h100", "fp8_block", "fp8_block", _PER_BLOCK, "block-scaled fp8 GEMMs", eager=True
    ),
    _Job("blackwell", "b200", "bfloat16", "bf16", _BF16, "bf16 GEMMs"),
    _Job("blackwell", "b200", "fp8", "fp8", _PER_TENSOR | _REREAD, _FP8),
    _Job(
        "blackwell",
        "b200",
        "fp8_block",
        "fp8_block",
        _PER_BLOCK,
        "block-scaled fp8 GEMMs",
        eager=True,
    ),
    _Job(
        "blackwell",
        "b200",
        "nvfp4",
        "nvfp4",
        _PER_BLOCK | _ROWS | _FLOOR,
        "nvfp4 GEMMs (the input converted first)",
    ),
)
_ACCELERATORS = {"h100": "h100-sxm", "b200": "b200-sxm"}
_LESS = 0.9


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables ``gemm`` of ``hopper`` and ``blackwell``, by engine and format."""
    rows = pd.read_csv(folder / _TABLE)
    tables: dict[str, dict[str, Any]] = {}
    for job in _JOBS:
        here = rows[(rows["gpu"] == job.gpu) & (rows["gemm_dtype"] == job.measured_as)].reset_index(
            drop=True
        )
        found = tables.setdefault(job.family, {"any": {}})["any"]
        found[job.dtype] = _entry(job, here, found["fp8"]["floor_s"] if job.eager else None)
    for table in tables.values():
        bf16 = table["any"]["bf16"]
        if "nvfp4" in table["any"]:
            table["any"]["mxfp4"] = _assumed(table["any"]["nvfp4"], "As nvfp4", 1.0)
        table["any"]["other"] = _assumed(
            bf16, "As bf16: weight-only kernels reach less of the peaks; 10 % taken off", _LESS
        )
    return tables


def _entry(job: _Job, rows: pd.DataFrame, floor_s: float | None) -> dict[str, Any]:
    accelerator = load_accelerator(_ACCELERATORS[job.gpu], job.gpu)
    shapes = rows.groupby(["n", "k"]).ngroup().to_numpy()
    fold_of_shape = np.random.default_rng(_SEED).permutation(shapes.max() + 1) % _FOLDS
    folds = fold_of_shape[shapes]
    predicted = np.empty(len(rows))
    for fold in range(_FOLDS):
        held = folds == fold
        predicted[held] = _predict(
            job, accelerator, _search(job, accelerator, rows[~held], floor_s), rows[held]
        )
    measured = rows["latency_ms"].to_numpy() / 1e3
    error = predicted / measured - 1
    low, high = np.quantile(measured / predicted, [0.1, 0.9])
    fitted = _search(job, accelerator, rows, floor_s)
    coefficients = {
        name: _plain(value)
        for name, value in fitted
        if name in job.start | job.given or name == "floor_s"
    }
    return {
        "kind": "fitted",
        "source": _what(job, rows, len(fold_of_shape)),
        "accelerator": accelerator.name,
        "command": COMMAND,
        "num_rows": len(rows),
        "median_error": _rounded(float(np.median(np.abs(error)))),
        "p90_error": _rounded(float(np.quantile(np.abs(error), 0.9))),
        "bias": _rounded(float(np.median(error))),
        "band": [_rounded(float(low)), _rounded(float(high))],
        **coefficients,
        **({"eager": fitted.eager.model_dump()} if fitted.eager else {}),
        "domain": {
            name: [int(rows[name].min()), int(rows[name].max())] for name in ("m", "n", "k")
        },
    }


def _what(job: _Job, rows: pd.DataFrame, num_shapes: int) -> str:
    text = (
        f"{len(rows):,} {job.what} on {job.gpu.upper()} of {num_shapes} shapes, "
        f"vLLM kernels, {_SOURCE}"
    )
    return (
        f"{text}. Launched eagerly, which hides the floor: that of fp8 is taken"
        if job.eager
        else text
    )


def _search(
    job: _Job, accelerator: AcceleratorSpec, rows: pd.DataFrame, floor_s: float | None
) -> GemmFit:
    """The coefficients that fit ``rows`` best, rounded."""
    start = job.start | (_EAGER if job.eager else {})
    measured = np.log(rows["latency_ms"].to_numpy() / 1e3)

    def built(coefficients: NDArray[np.float64]) -> GemmFit:
        values = dict(zip(start, coefficients.tolist(), strict=True))
        eager = (
            EagerLaunch.model_construct(**{name: values.pop(name) for name in _EAGER})
            if job.eager
            else None
        )
        return GemmFit.model_construct(
            kind="fitted", source="", **{"floor_s": floor_s} | job.given | values, eager=eager
        )

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(_predict(job, accelerator, built(np.exp(logs)), rows)) - measured

    lowest, highest = np.log(np.array([_BOUNDS.get(name, (1e-12, 1e12)) for name in start]).T)
    first = np.log(list(start.values()))
    best = least_squares(
        errors,
        first,
        bounds=(lowest, highest),
        loss="soft_l1",
        f_scale=_SCALE,
        diff_step=[1e-3] * len(first),
    )
    found = built(np.array([_rounded(value) for value in np.exp(best.x).tolist()]))
    split = {} if found.min_split_k is None else {"min_split_k": round(found.min_split_k)}
    return found.model_copy(update=split)


def _predict(
    job: _Job, accelerator: AcceleratorSpec, coefficients: GemmFit, rows: pd.DataFrame
) -> NDArray[np.float64]:
    m, k, n = (rows[name].to_numpy(dtype=float) for name in ("m", "k", "n"))
    seconds = product_s(
        accelerator, coefficients, m, k, n, Operands.from_format(accelerator, job.dtype)
    )
    return (
        seconds
        if coefficients.eager is None
        else with_launch_s(coefficients.eager, seconds, m, k, n)
    )


def _assumed(entry: dict[str, Any], source: str, share: float) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in entry.items()
        if name in GemmFit.model_fields and name not in _ABOUT
    }
    for name in ("compute_fraction", "memory_fraction"):
        kept[name] = _rounded(kept[name] * share)
    return {"kind": "assumed", "source": source, **kept}


_ABOUT = (
    "kind",
    "source",
    "accelerator",
    "command",
    "num_rows",
    "median_error",
    "p90_error",
    "bias",
    "band",
    "domain",
)


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
