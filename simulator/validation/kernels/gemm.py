"""Dense matrix products, one kernel a row.

Where a table says no engine, its kernels are vLLM's. vLLM's block-scaled fp8 kernels were timed as
Python launches them, so what launching takes is added to them here
(:class:`simulator.config.calibration.gemm.EagerLaunch`); serving does not pay it, since engines
replay CUDA graphs.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration.gemm import EagerLaunch, GemmFit
from simulator.cost.kernels.gemm import Operands, product_s
from simulator.validation import OK, Answers, Measure, require
from simulator.validation.error_bands import Band
from simulator.validation.extrapolation import Doubt, no_narrower, of_hardware, outside_of, settle
from simulator.validation.hardware import calibrated, seen
from simulator.validation.sizes import numbers, refusals

_EAGER_ENGINE = "vllm"
_ENGINES = (_EAGER_ENGINE, "any", "nan")
"""Whose kernels were measured."""
_FEW_ROWS, _NARROW, _SHALLOW = 16, 64, 128
_SHARPNESS = 5.0
"""Exponent with which the longer of launch and kernel hides the other. Fitted: 4.8 on H100, 3.8 on
B200."""

_FORMATS = {
    "bfloat16": ("bf16", ""),
    "float16": ("fp16", ""),
    "half": ("fp16", ""),
    "fp8": ("fp8", ""),
    "fp8_block": ("fp8_block", ""),
    "nvfp4": ("nvfp4", ""),
    "mxfp4": ("mxfp4", ""),
    "fp8_ootb": ("fp8", "priced as fp8 whose input is converted on the fly"),
    "fp8_static": ("fp8", "priced as fp8 whose input is converted on the fly"),
    "int8_wo": ("int8", "priced as 16-bit products that read 8-bit weights"),
    "int4_wo": ("int4", ""),
    "w4afp8": ("int4", "priced as 16-bit products that read 4-bit weights"),
    "sq": ("int8", ""),
}
"""Names in tables: the format here, and what is guessed about it."""
_WEIGHT_ONLY = ("int8_wo",)


class Gemm(Frozen):
    """Dense matrix products."""

    columns: ClassVar[tuple[str, ...]] = ("gpu", "gemm_dtype", "m", "n", "k")
    measures: ClassVar[tuple[Measure, ...]] = (Measure("kernel", "latency_ms", 1e-3),)

    def answer(self, table: pd.DataFrame) -> Answers:
        require(table, self.columns, "gemm table")
        engines = table["engine"] if "engine" in table.columns else [_EAGER_ENGINE] * len(table)
        answers = Answers.unsupported(len(table), len(self.measures))
        sizes = numbers(table, ("m", "k", "n"))
        wrong = refusals(sizes)
        sizes_3 = np.stack(list(sizes.values()))
        keys = pd.Series(
            list(
                zip(
                    table["gpu"].map(str),
                    table["gemm_dtype"].map(str),
                    map(str, engines),
                    strict=True,
                )
            ),
            dtype=object,
        )
        codes, found = pd.factorize(keys)
        for code, key in enumerate(found):
            places = np.flatnonzero(codes == code)
            self._answer_group(answers, places, sizes_3[:, places], wrong[places], *key)
        return answers

    def _answer_group(
        self,
        answers: Answers,
        places: NDArray[np.intp],
        sizes_3: NDArray[np.float64],
        wrong: NDArray[np.object_],
        gpu: str,
        measured_as: str,
        engine: str,
    ) -> None:
        found, (dtype, guess) = calibrated(gpu, engine), _FORMATS.get(measured_as, ("", ""))
        reason = "" if found else f"no calibrated accelerator '{gpu}'"
        if found and not dtype:
            reason = f"no number format '{measured_as}'; known: {', '.join(_FORMATS)}"
        for place, why in zip(places, wrong, strict=True):
            answers.group[place] = f"{gpu} {dtype or measured_as}"
            answers.status[place] = f"unsupported: {reason or why}" if reason or why else OK
        is_size = wrong == ""
        if found is None or not dtype or not is_size.any():
            return
        accelerator, calibration = found
        fit = calibration.matrices(dtype)
        places, (m, k, n) = places[is_size], sizes_3[:, is_size]
        seconds = product_s(accelerator, fit, m, k, n, _operands(accelerator, dtype, measured_as))
        if fit.eager is not None and engine == _EAGER_ENGINE:
            seconds = with_launch_s(fit.eager, seconds, m, k, n)
        here = _doubts(fit, guess, engine) + of_hardware(
            fit, accelerator, f"{dtype} products", dtype
        )
        statuses, wider = settle(len(places), here, outside_of(fit, m=m, n=n, k=k))
        low, high = Band.of(fit).spread(seconds, wider)
        if fit.kind == "assumed":
            like = seen().on(engine).matrices(dtype)
            low, high = no_narrower(
                (low, high),
                seconds,
                like,
                _doubts(like, guess, engine),
                outside_of(like, m=m, n=n, k=k),
            )
        answers.seconds[places, 0], answers.low[places, 0], answers.high[places, 0] = (
            seconds,
            low,
            high,
        )
        for place, status in zip(places, statuses, strict=True):
            answers.status[place] = status


def _doubts(fit: GemmFit, guess: str, engine: str) -> list[Doubt]:
    doubts = [Doubt(guess)] if guess else []
    if fit.kind != "assumed" and engine not in _ENGINES:
        doubts.append(Doubt(f"kernels of {engine} were not measured, vLLM's were"))
    return doubts


def with_launch_s(
    eager: EagerLaunch,
    kernel_s: NDArray[np.float64],
    m: NDArray[np.float64],
    k: NDArray[np.float64],
    n: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Time of a kernel that is launched eagerly again and again: the longer of launching and
    computing, with a soft corner.
    """
    launch_s = np.where(
        (n < _NARROW) | (k < _SHALLOW),
        eager.narrow_s,
        np.where(m <= _FEW_ROWS, eager.few_rows_s, eager.seconds),
    )
    return np.asarray(
        (kernel_s**_SHARPNESS + launch_s**_SHARPNESS) ** (1 / _SHARPNESS), dtype=np.float64
    )


def _operands(accelerator: AcceleratorSpec, dtype: str, measured_as: str) -> Operands:
    operands = Operands.of(accelerator, dtype)
    if measured_as in _WEIGHT_ONLY:
        return operands._replace(flops_per_s=accelerator.bf16_flops_per_s, input_bytes=2.0)
    return operands
