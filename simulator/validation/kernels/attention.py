"""Grouped-query and multi-head attention, one kernel a row, the writing of new keys and values into
the cache included.

A row of the context phase has ``isl`` new tokens behind ``step`` cached ones in each sequence; one
of the generation phase likewise, with one new token. A sequence with one new token is computed by
the kernels for decode, whatever the phase is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.config.mixers.gqa import GroupedQueryAttention
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

SIZES = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size")
_SHAPE = SIZES[3:]
_COMPUTED = ("bfloat16", "float16", "half", "bf16", "fp16")
_MEASURED = ("bf16", "fp16", "fp8")
_ANY = "any"
_ENGINES = (_ANY, "nan", "vllm")
"""Where a table says no engine, its kernels are vLLM's."""


class Attention(Frozen):
    """Grouped-query and multi-head attention, full or over a sliding window."""

    columns: ClassVar[tuple[str, ...]] = ("gpu", "phase", "kv_cache_dtype", *SIZES)
    measures: ClassVar[tuple[Measure, ...]] = (Measure("kernel", "latency_ms", 1e-3),)

    def answer(self, table: pd.DataFrame) -> Answers:
        require(table, self.columns, "attention table")
        answers = Answers.unsupported(len(table), len(self.measures))
        sizes, wrong = whole_sizes(table, SIZES, ("step", "window_size"))
        new, phase = sizes[1], table["phase"].map(str).to_numpy(dtype=object)
        names = pd.DataFrame(
            {
                "gpu": table["gpu"].map(str).to_numpy(dtype=object),
                "engine": table["engine"].map(str).to_numpy(dtype=object)
                if "engine" in table.columns
                else _ANY,
                "phase": phase,
                "kv": table["kv_cache_dtype"].map(str).to_numpy(dtype=object),
                "computed": table["attn_dtype"].map(str).to_numpy(dtype=object)
                if "attn_dtype" in table.columns
                else "bfloat16",
                "is_one": new == 1,
                **dict(zip(_SHAPE, sizes[3:], strict=True)),
                "wrong": wrong,
            }
        )
        codes, found = pd.factorize(pd.MultiIndex.from_frame(names))
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(found)))
        for key, places in zip(found, np.split(order, ends[:-1]), strict=True):
            self._answer_group(answers, places, sizes[:, places], key)
        return answers

    def _answer_group(
        self,
        answers: Answers,
        places: NDArray[np.intp],
        sizes: NDArray[np.float64],
        key: tuple[Any, ...],
    ) -> None:
        gpu, engine, phase, kv, computed, is_one, *shape, wrong = key
        label = " ".join(
            word
            for word in (
                gpu,
                "" if engine == _ANY else engine,
                PHASES.get(phase, phase),
                KV_FORMATS.get(kv, kv),
            )
            if word
        )
        reason = _refusal(gpu, engine, phase, kv, shape, wrong)
        for place in places:
            answers.group[place] = label
            answers.status[place] = f"unsupported: {reason}"
        hardware = calibrated(gpu, engine)
        if reason or hardware is None:
            return
        accelerator, calibration = hardware
        kernel_phase: Phase = "decode" if is_one else PHASES[phase]
        fit = calibration.attention_fit(kernel_phase, KV_FORMATS[kv], is_latent=False)
        looking = kernel_of_shape([int(size) for size in shape], KV_FORMATS[kv])
        batches = batches_of(sizes)
        seconds = context_s(batches, [(accelerator, fit, looking, kernel_phase)])
        doubts = of_hardware(fit, accelerator, "attention kernels")
        if fit.kind != "assumed" and computed not in _COMPUTED:
            doubts.append(Doubt(f"attention computed in {computed} was not measured"))
        if fit.kind != "assumed" and KV_FORMATS[kv] not in _MEASURED:
            doubts.append(Doubt(f"a cache in {KV_FORMATS[kv]} was not measured"))
        if fit.kind != "assumed" and engine not in _ENGINES:
            doubts.append(Doubt(f"kernels of {engine} were not measured, vLLM's were"))
        quantities = dict(zip(SIZES, sizes, strict=True)) | {"context": sizes[1] + sizes[2]}
        fill(
            answers,
            places,
            seconds,
            fit,
            quantities,
            doubts,
            (sizes[2] > 0) & (kernel_phase == "prefill"),
        )


def kernel_of_shape(shape: Sequence[int], kv_dtype: str) -> ContextKernel:
    """What one layer of such a kernel does.

    Args:
        shape: heads, key-value heads, their size, and the window (0 for none).
    """
    num_heads, num_kv_heads, head_size, window = shape
    mixer = GroupedQueryAttention(
        kind="gqa",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        window=window or None,
    )
    return context_kernel(mixer.context_terms()[0], 1, kv_dtype)


def batches_of(sizes: NDArray[np.float64], which: int | NDArray[np.int64] = 0) -> Batches:
    """Rows of :data:`SIZES` as batches."""
    batch_size, new, context = sizes[:3].astype(np.int64)
    return Batches(
        batch_size,
        context,
        new,
        np.broadcast_to(np.asarray(which, dtype=np.int64), batch_size.shape),
    )


def _refusal(gpu: str, engine: str, phase: str, kv: str, shape: list[float], wrong: str) -> str:
    if calibrated(gpu, engine) is None:
        return f"no calibrated accelerator '{gpu}'"
    if phase not in PHASES:
        return f"no phase '{phase}'; known: {', '.join(PHASES)}"
    if kv not in KV_FORMATS:
        return f"no cache format '{kv}'; known: {', '.join(KV_FORMATS)}"
    if wrong:
        return wrong
    if shape[0] % shape[1]:
        return "num_key_value_heads does not divide num_heads"
    return ""
