"""Dense matrix products, one kernel a row; fits the table ``gemm``.

Where a table says no engine, its kernels are vLLM's. vLLM's block-scaled fp8 kernels were timed as
Python launches them, so what launching takes is added to them here
(:class:`simulator.config.calibration.kernels.EagerLaunch`); serving does not pay it, since engines
replay CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.arrays import Bools, Floats
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, Calibration
from simulator.config.calibration.fit import Fit
from simulator.config.calibration.kernels import EagerLaunch, GemmFit
from simulator.cost.kernels.gemm import Operands, product_s
from simulator.lab.validation import Measure
from simulator.lab.validation.extrapolation import Doubt, of_hardware
from simulator.lab.validation.hardware import find_most_measured
from simulator.lab.validation.kernels import (
    SOURCE,
    Estimate,
    KernelFamily,
    Part,
    Places,
    group_rows,
    unknown_name,
    words,
)
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels._fitting import Entries, Search, Values, Wanted
from simulator.lab.validation.sizes import numbers, refusals

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

_WEIGHT_ONLY_SHARE = 0.9
"""Share of what bf16 products reach of the peaks that weight-only kernels are assumed to reach."""


class Gemm(KernelFamily):
    """Dense matrix products."""

    columns = ("gpu", "gemm_dtype", "m", "n", "k")
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "gemm"
    sources = ("gemm.csv.gz",)

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        sizes = numbers(table, ("m", "k", "n"))
        wrong = refusals(sizes)
        keys = words(table, "gpu", "gemm_dtype", engine=_EAGER_ENGINE)
        for (gpu, measured_as, engine), places in group_rows(keys):
            dtype, guess = _FORMATS.get(measured_as, ("", ""))
            unknown = unknown_name("number format", measured_as, _FORMATS)
            price = partial(_estimate, sizes, dtype, measured_as, engine, guess)
            group, refused = f"{gpu} {dtype or measured_as}", wrong[places] if dtype else unknown
            yield Part(places, gpu, engine, group, refused, price)

    def fit(self, tables: Sequence[pd.DataFrame]) -> Entries:
        (rows,) = tables
        found = fitting.fit_plan(fitting.load_plan("gemm"), rows, _fit_entry)
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
    sizes: Mapping[str, Floats],
    dtype: str,
    measured_as: str,
    engine: str,
    guess: str,
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    places: Places,
) -> Estimate:
    m, k, n = (sizes[name][places] for name in ("m", "k", "n"))
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
        {"m": m, "n": n, "k": k},
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


def _fit_entry(wanted: Wanted, rows: pd.DataFrame, given: dict[str, Any]) -> dict[str, object]:
    plan, accelerator = fitting.load_plan("gemm"), fitting.accelerator_of(wanted.gpu)
    measured = rows["latency_ms"].to_numpy() / 1e3
    sizes = {name: rows[name].to_numpy(dtype=float) for name in ("m", "n", "k")}
    start, launching = plan.begin(*wanted.search), EagerLaunch.model_fields
    operands = Operands.from_format(accelerator, wanted.name)

    def build(values: Values) -> GemmFit:
        launch: dict[str, Any] = {name: values[name] for name in launching if name in values}
        own = {name: value for name, value in values.items() if name not in launch}
        return GemmFit.model_construct(
            kind="fitted",
            source="",
            **given | own,
            eager=EagerLaunch.model_construct(**launch) if launch else None,
        )

    def predict(fit: GemmFit, chosen: Bools) -> Floats:
        m, n, k = (values[chosen] for values in sizes.values())
        seconds = product_s(accelerator, fit, m, k, n, operands)
        return seconds if fit.eager is None else with_launch_s(fit.eager, seconds, m, k, n)

    def finish(values: Values) -> Values:
        whole = {name: round(values[name]) for name in ("min_split_k",) if name in values}
        return values | whole

    search = Search(plan, measured, build, predict, start, finish)
    shapes = rows.groupby(["n", "k"]).ngroup().to_numpy()
    source = (
        f"{len(rows):,} {wanted.what} on {wanted.gpu.upper()} of {shapes.max() + 1} shapes, "
        f"vLLM kernels, {SOURCE}"
    )
    if "eager" in wanted.search:
        source += ". Launched eagerly, which hides the floor: that of fp8 is taken"
    return search.entry(source, accelerator, shapes, sizes, {*start, *given, "eager"})
