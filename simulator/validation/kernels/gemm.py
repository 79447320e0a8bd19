"""Dense matrix products, one kernel a row; fits the table ``gemm``.

Where a table says no engine, its kernels are vLLM's. vLLM's block-scaled fp8 kernels were timed as
Python launches them, so what launching takes is added to them here
(:class:`simulator.config.calibration.gemm.EagerLaunch`); serving does not pay it, since engines
replay CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, Calibration
from simulator.config.calibration.fit import Fit
from simulator.config.calibration.gemm import EagerLaunch, GemmFit
from simulator.cost.kernels.gemm import Operands, product_s
from simulator.validation import Answers, Measure, require
from simulator.validation.extrapolation import Doubt, of_hardware
from simulator.validation.hardware import find_calibrated, find_most_measured
from simulator.validation.kernels import SOURCE, KernelFamily
from simulator.validation.kernels import _answering as answering
from simulator.validation.kernels import _fitting as fitting
from simulator.validation.kernels._answering import Estimate
from simulator.validation.kernels._fitting import GPUS, Chosen, Floats, Tables, Values
from simulator.validation.sizes import numbers, refusals

_EAGER_ENGINE = "vllm"
_ENGINES = (_EAGER_ENGINE, ANY, "nan")
"""Engines whose kernels were measured."""
_FEW_ROWS, _NARROW, _SHALLOW = 16, 64, 128
"""Up to so many rows, below so many output and input features another kernel serves, which starts
in a time of its own: vLLM's times jump there."""
_SHARPNESS = 5.0
"""Exponent with which the longer of launch and kernel hides the other. Fitted: 4.8 on H100, 3.8 on
B200."""
_UNPACKED = "priced as 16-bit products that read {}-bit weights"
_CONVERTED = "priced as fp8 whose input is converted on the fly"
_FORMATS = {
    **{name: (name, "") for name in ("fp8", "fp8_block", "nvfp4", "mxfp4")},
    "bfloat16": ("bf16", ""),
    "float16": ("fp16", ""),
    "half": ("fp16", ""),
    "fp8_ootb": ("fp8", _CONVERTED),
    "fp8_static": ("fp8", _CONVERTED),
    "int8_wo": ("int8", _UNPACKED.format(8)),
    "int4_wo": ("int4", ""),
    "w4afp8": ("int4", _UNPACKED.format(4)),
    "sq": ("int8", ""),
}
"""Names in tables: the format here, and what is guessed about it."""
_WEIGHT_ONLY = ("int8_wo",)
"""Formats that are computed in 16 bits."""

_FOLDS = 5
"""Parts of the shapes, each of which is left out once."""
_SCALE = 0.05
"""Error of the logarithm beyond which errors count linearly: single readings are off by twice."""
_STEP = 1e-3
"""Relative step of the numeric derivative: tiles make seconds jump over shorter ones."""
_PRODUCT = {
    "compute_fraction": 0.8,
    "memory_fraction": 0.8,
    "overlap": 2.5,
    "start_s": 5e-7,
    "sweep_width": 256.0,
}
"""Coefficients of every format, and where the search for them starts; likewise of some below."""
_REREAD, _FLOOR, _SPLIT = {"reread": 40.0}, {"floor_s": 4e-6}, {"min_split_k": 4096.0}
_ROWS, _BLOCKS = {"quantise_row_s": 3e-7}, {"quantise_block_s": 6e-7}
_EAGER = dict.fromkeys(EagerLaunch.model_fields, 1e-4)
"""Start of the search for the time between kernels that Python launches."""
_BF16 = _PRODUCT | _REREAD | _FLOOR | _SPLIT
_PER_TENSOR = _PRODUCT | _FLOOR | _ROWS | _BLOCKS
_PER_BLOCK = _PRODUCT | _REREAD | {"quantise_bytes": 4.0}
_ANYWHERE = (1e-12, 1e12)
"""Bounds of other coefficients: as good as none."""
_BOUNDS = {
    "compute_fraction": (0.1, 1.0),
    "memory_fraction": (0.1, 1.0),
    "overlap": (1.3, 5.0),
    "reread": (1.0, 400.0),
}
"""Possible values: the coefficients can stand in for each other, and the end of their trade is no
machine."""
_CUTLASS = {"tiles": ((1, 64, 64), (65, 64, 128), (129, 128, 128)), "reread": 0.0}
"""Tiles of vLLM's fp8 kernels for Hopper by number of rows; its times with few columns jump there,
in proportion to ``k``."""
_CACHE_BYTES = {"h100": 50e6, "b200": 126e6}
"""L2 of H100 and H200 (NVIDIA H100 whitepaper), and of B200 (CUDA runtime)."""
_WEIGHT_ONLY_SHARE = 0.9
"""Share of what bf16 products reach of the peaks that weight-only kernels are assumed to reach."""


class _Job(NamedTuple):
    """One entry to fit."""

    gpu: str
    measured_as: str
    dtype: str
    start: Values
    """Coefficients that are fitted, and where the search for them starts."""
    what: str
    fixed: dict[str, Any] = {}
    is_eager: bool = False
    """Whether launching was timed too. It hides the floor, which is then that of per-tensor fp8,
    whose input two kernels convert and multiply as well."""


_FP8 = "fp8 GEMMs (one scale a tensor, the input converted first; kernels that do not split k)"
_BLOCK_FP8 = "block-scaled fp8 GEMMs"
_NVFP4 = "nvfp4 GEMMs (the input converted first)"
_JOBS = (
    _Job("h100", "bfloat16", "bf16", _BF16, "bf16 GEMMs"),
    _Job("h100", "fp8", "fp8", _PER_TENSOR, _FP8, _CUTLASS),
    _Job("h100", "fp8_block", "fp8_block", _PER_BLOCK, _BLOCK_FP8, is_eager=True),
    _Job("b200", "bfloat16", "bf16", _BF16, "bf16 GEMMs"),
    _Job("b200", "fp8", "fp8", _PER_TENSOR | _REREAD, _FP8),
    _Job("b200", "fp8_block", "fp8_block", _PER_BLOCK, _BLOCK_FP8, is_eager=True),
    _Job("b200", "nvfp4", "nvfp4", _PER_BLOCK | _ROWS | _FLOOR, _NVFP4),
)


class Gemm(KernelFamily):
    """Dense matrix products."""

    columns = ("gpu", "gemm_dtype", "m", "n", "k")
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "gemm"
    sources = ("gemm.csv.gz",)

    def answer(self, table: pd.DataFrame) -> Answers:
        require(table, self.columns, "gemm table")
        answers = Answers.make_unsupported(len(table), len(self.measures))
        sizes = numbers(table, ("m", "k", "n"))
        wrong = refusals(sizes)
        for key, places in answering.group_rows(
            answering.words(table, "gpu", "gemm_dtype", engine=_EAGER_ENGINE)
        ):
            gpu, measured_as, engine = key
            dtype, guess = _FORMATS.get(measured_as, ("", ""))
            found = find_calibrated(gpu, engine)
            reason = answering.unknown_gpu(gpu) if found is None else ""
            if found and not dtype:
                reason = answering.unknown_name("number format", measured_as, _FORMATS)
            reasons = [reason or why for why in wrong[places]]
            places = places[
                answering.name_group(answers, places, f"{gpu} {dtype or measured_as}", reasons)
            ]
            if found is not None and len(places):
                own = {name: values[places] for name, values in sizes.items()}
                answering.fill(
                    answers, places, _estimate(*found, dtype, measured_as, engine, guess, own)
                )
        return answers

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        (rows,) = tables
        found: Tables = {}
        for job in _JOBS:
            own = rows[(rows["gpu"] == job.gpu) & (rows["gemm_dtype"] == job.measured_as)]
            if len(own):
                entries = found.setdefault(GPUS[job.gpu][0], {ANY: {}})[ANY]
                given = {"cache_bytes": _CACHE_BYTES[job.gpu]} | job.fixed
                if job.is_eager:
                    given["floor_s"] = entries["fp8"]["floor_s"]
                entries[job.dtype] = _fit_entry(job, own.reset_index(drop=True), given)
        about = Fit.model_fields
        names = [name for name in GemmFit.model_fields if name not in about]
        for engines in found.values():
            entries = engines[ANY]
            if "nvfp4" in entries:
                entries["mxfp4"] = fitting.assume(entries["nvfp4"], "As nvfp4", names)
            why = "As bf16: weight-only kernels reach less of the peaks; 10 % taken off"
            entries["other"] = fitting.assume(entries["bf16"], why, names, _WEIGHT_ONLY_SHARE)
        return found


def _estimate(
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    dtype: str,
    measured_as: str,
    engine: str,
    guess: str,
    sizes: Mapping[str, Floats],
) -> Estimate:
    m, k, n = (sizes[name] for name in ("m", "k", "n"))
    fit = calibration.matrices(dtype)
    operands = Operands.from_format(accelerator, dtype)
    if measured_as in _WEIGHT_ONLY:
        operands = operands._replace(flops_per_s=accelerator.bf16_flops_per_s, input_bytes=2.0)
    seconds = product_s(accelerator, fit, m, k, n, operands)
    if fit.eager is not None and engine == _EAGER_ENGINE:
        seconds = with_launch_s(fit.eager, seconds, m, k, n)
    similar = find_most_measured().choose_engine(engine).matrices(dtype)
    hardware = of_hardware(fit, accelerator, f"{dtype} products", dtype)
    return Estimate(
        seconds,
        fit,
        _doubts(fit, guess, engine) + hardware,
        {name: sizes[name] for name in ("m", "n", "k")},
        similar=(similar, _doubts(similar, guess, engine)),
    )


def _doubts(fit: GemmFit, guess: str, engine: str) -> list[Doubt]:
    doubts = [Doubt(guess)] if guess else []
    if fit.kind != "assumed" and engine not in _ENGINES:
        doubts.append(Doubt(f"kernels of {engine} were not measured, vLLM's were"))
    return doubts


def with_launch_s(eager: EagerLaunch, kernel_s: Floats, m: Floats, k: Floats, n: Floats) -> Floats:
    """Time of a kernel that is launched eagerly again and again: the longer of launching and
    computing, with a soft corner.
    """
    rows_s = np.where(m <= _FEW_ROWS, eager.few_rows_s, eager.seconds)
    launch_s = np.where((n < _NARROW) | (k < _SHALLOW), eager.narrow_s, rows_s)
    return np.asarray((kernel_s**_SHARPNESS + launch_s**_SHARPNESS) ** (1 / _SHARPNESS))


def _fit_entry(job: _Job, rows: pd.DataFrame, given: dict[str, Any]) -> dict[str, Any]:
    accelerator = fitting.accelerator_of(job.gpu)
    measured = rows["latency_ms"].to_numpy() / 1e3
    sizes = {name: rows[name].to_numpy(dtype=float) for name in ("m", "n", "k")}
    start = job.start | (_EAGER if job.is_eager else {})

    def build(values: Values) -> GemmFit:
        launch: dict[str, Any] = {name: values[name] for name in _EAGER if job.is_eager}
        own = {name: value for name, value in values.items() if name not in _EAGER}
        return GemmFit.model_construct(
            kind="fitted",
            source="",
            **given | own,
            eager=EagerLaunch.model_construct(**launch) if launch else None,
        )

    def predict(fit: GemmFit, chosen: Chosen) -> Floats:
        m, n, k = (values[chosen] for values in sizes.values())
        seconds = product_s(accelerator, fit, m, k, n, Operands.from_format(accelerator, job.dtype))
        return seconds if fit.eager is None else with_launch_s(fit.eager, seconds, m, k, n)

    def solve(chosen: Chosen) -> GemmFit:
        found = fitting.search(
            lambda values: predict(build(values), chosen),
            measured[chosen],
            start,
            {name: _BOUNDS.get(name, _ANYWHERE) for name in start},
            _SCALE,
            diff_step=_STEP,
        ).values
        if "min_split_k" in found:
            found["min_split_k"] = round(found["min_split_k"])
        return build(found)

    shapes = rows.groupby(["n", "k"]).ngroup().to_numpy()
    folds = fitting.make_folds(shapes, _FOLDS)
    predicted = fitting.leave_out(
        folds,
        lambda seen, held: predict(solve(seen), held),
    )
    fitted = solve(np.ones(len(rows), dtype=bool))
    source = (
        f"{len(rows):,} {job.what} on {job.gpu.upper()} of {shapes.max() + 1} shapes, "
        f"vLLM kernels, {SOURCE}"
    )
    if fitted.eager:
        source += ". Launched eagerly, which hides the floor: that of fp8 is taken"
    return fitting.entry(
        source,
        accelerator,
        fitting.residuals(measured, predicted, folds),
        **{name: value for name, value in fitted if name in job.start | given},
        **({"eager": fitted.eager.model_dump()} if fitted.eager else {}),
        domain=fitting.domain_of(sizes),
    )
