"""Multi-head latent attention with DeepSeek-V3's sizes: one kernel a row, or one whole block
(``mla_context_module``, ...).

``num_heads`` are those of one rank. A block's matrix products are priced as the simulator prices a
layer's mixer, and what else it launches is the calibration's ``module_s``. ``isl`` and ``step`` are
as in attention tables.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.mixers.mla import LatentAttention
from simulator.cost.compute.roofline import RooflineModel
from simulator.validation import Answers, Measure, require
from simulator.validation.context import (
    KV_FORMATS,
    PHASES,
    Batches,
    Phase,
    context_s,
    fill,
    whole_sizes,
)
from simulator.validation.extrapolation import Doubt, of_hardware
from simulator.validation.hardware import calibrated
from simulator.work.context_kernels import ContextKernel, context_kernel
from simulator.work.layout import shard

SIZES = ("batch_size", "isl", "step", "num_heads")
GEMM_FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
}
"""Names in tables: the format here."""
DECODES_ONE = "vllm"
"""The engine that computes prompts of one token by its kernels for decode."""
_HIDDEN_SIZE = 7168
_MEASURED = ("bf16", "fp16", "fp8")
_TIMED = {"trtllm": (False, True), "sglang": (False,), "vllm": (True,)}
"""Engines whose kernels were timed: whether inside whole blocks."""
_COMPUTED = ("bfloat16", "float16", "fp8", "nan")


class Mla(Frozen):
    """Latent attention, kernels and whole blocks."""

    columns: ClassVar[tuple[str, ...]] = ("gpu", "engine", "phase", "kv_cache_dtype", *SIZES)
    measures: ClassVar[tuple[Measure, ...]] = (Measure("kernel", "latency_ms", 1e-3),)

    def answer(self, table: pd.DataFrame) -> Answers:
        require(table, self.columns, "mla table")
        answers = Answers.unsupported(len(table), len(self.measures))
        sizes, wrong = whole_sizes(table, SIZES, ("step",))
        names = pd.DataFrame(
            {name: _words(table, name) for name in ("gpu", "engine", "phase", "kv_cache_dtype")}
        )
        names["computed"], names["weights"] = _words(table, "mla_dtype"), _words(table, "gemm_type")
        names["is_one"] = (sizes[1] == 1) & (names["engine"] == DECODES_ONE)
        names["num_heads"], names["wrong"] = sizes[3], wrong
        codes, found = pd.factorize(pd.MultiIndex.from_frame(names))
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(found)))
        for key, places in zip(found, np.split(order, ends[:-1]), strict=True):
            _answer_group(answers, places, sizes[:, places], key)
        return answers


def _words(table: pd.DataFrame, name: str) -> NDArray[Any]:
    if name not in table.columns:
        return np.full(len(table), "nan", dtype=object)
    return np.asarray(table[name].map(str), dtype=object)


def _answer_group(
    answers: Answers, places: NDArray[np.intp], sizes: NDArray[np.float64], key: tuple[Any, ...]
) -> None:
    gpu, engine, phase_name, kv_name, computed, weights, is_one, num_heads, wrong = key
    is_module = phase_name.endswith("module")
    reason = _refusal(gpu, engine, phase_name, kv_name, weights if is_module else "bfloat16", wrong)
    what = f"{PHASES.get(phase_name, phase_name)}{' block' if is_module else ''}"
    for place in places:
        answers.group[place] = f"{gpu} {engine} {what}"
        answers.status[place] = f"unsupported: {reason}"
    hardware = calibrated(gpu, engine)
    if reason or hardware is None:
        return
    accelerator, calibration = hardware
    phase: Phase = "decode" if is_one else PHASES[phase_name]
    kv, dtype = KV_FORMATS[kv_name], GEMM_FORMATS.get(weights, "bf16")
    fit = calibration.attention_fit(
        phase, kv, is_latent=True, computed="fp8" if computed == "fp8" else ""
    )
    batch_size, new, context = sizes[:3].astype(np.int64)
    batches = Batches(batch_size, context, new, np.zeros(len(places), dtype=np.int64))
    seconds = context_s(batches, [(accelerator, fit, kernel_of_shape(int(num_heads), kv), phase)])
    doubts = of_hardware(fit, accelerator, "kernels of latent attention")
    if is_module:
        seconds = (
            seconds
            + matrices_s(accelerator, calibration, int(num_heads), dtype, batch_size * new)
            + fit.module_s
        )
    if fit.kind != "assumed":
        if is_module and calibration.matrices(dtype).kind == "assumed":
            doubts.append(Doubt(f"no measured {dtype} products on its family"))
        if computed not in _COMPUTED:
            doubts.append(Doubt(f"attention computed in {computed} was not measured"))
        if kv not in _MEASURED:
            doubts.append(Doubt(f"a cache in {kv} was not measured"))
        if engine not in _TIMED:
            doubts.append(Doubt(f"kernels of {engine} were not measured, TensorRT-LLM's were"))
        elif is_module not in _TIMED[engine]:
            doubts.append(
                Doubt(
                    f"of {engine}, {'whole blocks' if not is_module else 'kernels alone'} were "
                    "measured"
                )
            )
    quantities = dict(zip(SIZES, sizes, strict=True)) | {"context": sizes[1] + sizes[2]}
    fill(answers, places, seconds, fit, quantities, doubts, (context > 0) & (phase == "prefill"))


def mixer(num_heads: int) -> LatentAttention:
    """DeepSeek-V3's (arXiv:2412.19437, section 4.2) with the heads of one rank."""
    return LatentAttention(
        kind="mla",
        num_heads=num_heads,
        query_rank=1536,
        kv_rank=512,
        nope_head_size=128,
        rope_head_size=64,
        value_head_size=128,
    )


def kernel_of_shape(num_heads: int, kv_dtype: str) -> ContextKernel:
    """What one layer's kernel does."""
    return context_kernel(mixer(num_heads).context_terms()[0], 1, kv_dtype)


def matrices_s(
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    num_heads: int,
    dtype: str,
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Seconds ``[n]`` of a block's matrix products for ``rows`` tokens. Norms on the hidden vectors
    and residuals are outside of it.
    """
    roofline = RooflineModel(accelerator, calibration)
    sizes, place = np.unique(rows, return_inverse=True)
    total = np.zeros(len(sizes))
    for linear in mixer(num_heads).linears(_HIDDEN_SIZE):
        in_features, out_features, copies = shard(linear, 1)
        total += roofline.gemm_s(sizes, in_features, out_features, dtype, copies)
    return np.asarray(total[place], dtype=np.float64)


def _refusal(gpu: str, engine: str, phase: str, kv: str, weights: str, wrong: str) -> str:
    if calibrated(gpu, engine) is None:
        return f"no calibrated accelerator '{gpu}'"
    if phase not in PHASES:
        return f"no phase '{phase}'; known: {', '.join(PHASES)}"
    if kv not in KV_FORMATS:
        return f"no cache format '{kv}'; known: {', '.join(KV_FORMATS)}"
    if weights not in GEMM_FORMATS:
        return (
            f"no number format '{weights}' of a block's matrices; known: {', '.join(GEMM_FORMATS)}"
        )
    return wrong
