"""Grouped-query and multi-head attention, one kernel a row, the writing of new keys and values into
the cache included; fits the entries of the table ``attention`` for any engine.

A row of the context phase has ``isl`` new tokens behind ``step`` cached ones in each sequence; one
of the generation phase likewise, with one new token. A sequence with one new token is computed by
the kernels for decode, whatever the phase is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, Calibration
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.validation import Answers, Measure, require
from simulator.validation.extrapolation import Doubt, of_hardware
from simulator.validation.hardware import find_calibrated
from simulator.validation.kernels import SOURCE, KernelFamily
from simulator.validation.kernels import _answering as answering
from simulator.validation.kernels import _fitting as fitting
from simulator.validation.kernels._answering import Estimate
from simulator.validation.kernels._context import (
    KV_FORMATS,
    PHASES,
    Batches,
    Phase,
    Timed,
    context_s,
    doubt_formats,
    make_estimate,
    refuse,
    whole_sizes,
)
from simulator.validation.kernels._fitting import GPUS, Floats, Tables, Values
from simulator.work.context_kernels import ContextKernel, context_kernel

_HEADS = ("num_heads", "num_key_value_heads", "head_dim", "window_size")
_SIZES = ("batch_size", "isl", "step", *_HEADS)
_KERNEL = list(_HEADS)
"""Columns that tell kernels apart."""
_COMPUTED = ("bfloat16", "float16", "half", "bf16", "fp16")
"""Formats that the measured kernels compute in."""
_ENGINES = (ANY, "nan", "vllm")
"""Engines whose kernels were measured: where a table says no engine, its kernels are vLLM's."""

_FOLDS = 6
"""Parts of the head shapes, each of which is left out once."""
_START: dict[Phase, Values] = {
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
"""Coefficients that are fitted, and where the search for them starts."""
_GROUPED = {"tile_rows": 32, "longest_rows": 128.0}
_TILED = {"tile_rows": 128, "longest_rows": 128.0}
_WINDOWED = {"window_block": 128.0, "split_entries": 128.0}
"""Rows of a tile, entries beyond a window and entries of a split view, by kernels."""
_JOBS: tuple[tuple[str, Phase, str, dict[str, Any]], ...] = (
    ("h100", "prefill", "bf16", _GROUPED),
    ("h100", "prefill", "fp8", _GROUPED),
    ("h100", "decode", "bf16", _WINDOWED),
    ("h100", "decode", "fp8", _WINDOWED),
    ("b200", "prefill", "bf16", _TILED),
    ("b200", "prefill", "fp8", {**_TILED, "computed_as": "fp8"}),
    ("b200", "decode", "bf16", {"split_entries": 256.0}),
    ("b200", "decode", "fp8", {"split_entries": 256.0}),
)
"""Division of work by kernels. Hopper's put the query heads of a group into one tile, so that few
tokens fill it; on H100 an fp8 cache makes nothing faster than bf16 arithmetic could be."""


class Attention(KernelFamily):
    """Grouped-query and multi-head attention, full or over a sliding window."""

    columns = ("gpu", "phase", "kv_cache_dtype", *_SIZES)
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "attention"
    sources = ("attention.csv.gz",)

    def answer(self, table: pd.DataFrame) -> Answers:
        require(table, self.columns, "attention table")
        answers = Answers.make_unsupported(len(table), len(self.measures))
        sizes, wrong = whole_sizes(table, _SIZES, ("step", "window_size"))
        absent = {"engine": ANY, "attn_dtype": "bfloat16"}
        keys = answering.words(table, "gpu", "phase", "kv_cache_dtype", **absent)
        keys = keys.assign(is_one=sizes[1] == 1, **dict(zip(_KERNEL, sizes[3:], strict=True)))
        for key, places in answering.group_rows(keys.assign(wrong=wrong)):
            gpu, phase, kv, engine, computed, is_one, *shape, why = key
            label = [gpu, engine * (engine != ANY), PHASES.get(phase, phase)]
            label = [word for word in (*label, KV_FORMATS.get(kv, kv)) if word]
            reason = refuse(gpu, engine, phase, kv) or why
            if not reason and shape[0] % shape[1]:
                reason = "num_key_value_heads does not divide num_heads"
            answering.name_group(answers, places, " ".join(label), reason)
            found = find_calibrated(gpu, engine)
            if not reason and found is not None:
                kernel_phase: Phase = "decode" if is_one else PHASES[phase]
                dtypes = (KV_FORMATS[kv], computed)
                estimate = _estimate(*found, engine, kernel_phase, dtypes, sizes[:, places])
                answering.fill(answers, places, estimate)
        return answers

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        (rows,) = tables
        # A prompt of one token runs the kernels for decode.
        is_decode = (rows["phase"].map(PHASES) == "decode") | (rows["isl"] == 1)
        found: Tables = {}
        for gpu, phase, kv, given in _JOBS:
            is_kind = (rows["gpu"] == gpu) & (rows["kv_cache_dtype"].map(KV_FORMATS) == kv)
            own = rows[is_kind & (is_decode == (phase == "decode"))].reset_index(drop=True)
            if len(own):
                entries = found.setdefault(GPUS[gpu][0], {ANY: {}})[ANY]
                name = phase if kv == "bf16" else f"{phase}_{kv}"
                entries[name] = _fit_entry(own, gpu, phase, kv, given)
        return found


def _estimate(
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    engine: str,
    phase: Phase,
    dtypes: tuple[str, str],
    sizes: Floats,
) -> Estimate:
    """Seconds of rows of one kernel.

    Args:
        dtypes: of the cache, and of what is computed.
        sizes: columns ``[c, n]``.
    """
    kv, computed = dtypes
    fit = calibration.attention_fit(phase, kv, is_latent=False)
    shape = sizes[3:, 0].astype(int).tolist()
    kernel = (accelerator, fit, _kernel_of_shape(shape, kv), phase)
    doubts = of_hardware(fit, accelerator, "attention kernels")
    if fit.kind != "assumed":
        doubts += doubt_formats(computed, _COMPUTED, kv)
        if engine not in _ENGINES:
            doubts.append(Doubt(f"kernels of {engine} were not measured, vLLM's were"))
    seconds = context_s(Batches.from_sizes(sizes), [kernel])
    return make_estimate(seconds, fit, doubts, dict(zip(_SIZES, sizes, strict=True)), phase)


def _kernel_of_shape(shape: Sequence[int], kv_dtype: str) -> ContextKernel:
    """Work of one layer's kernel.

    Args:
        shape: heads, key-value heads, their size, and the window (0 for none).
    """
    num_heads, num_kv_heads, size, window = shape
    heads: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    mixer = GroupedQueryAttention(kind="gqa", **heads, head_size=size, window=window or None)
    return context_kernel(mixer.context_terms()[0], 1, kv_dtype)


def _fit_entry(
    rows: pd.DataFrame, gpu: str, phase: Phase, kv: str, given: dict[str, Any]
) -> dict[str, Any]:
    shapes = rows.groupby(_KERNEL[:3]).ngroup().to_numpy()
    kernels = rows[_KERNEL].drop_duplicates().reset_index(drop=True)
    which = rows.merge(kernels.reset_index(), on=_KERNEL, how="left")["index"].to_numpy()
    timed = Timed(
        fitting.accelerator_of(gpu),
        [_kernel_of_shape([int(size) for size in row], kv) for row in kernels.to_numpy()],
        phase,
        Batches.from_sizes(rows[list(_SIZES)].to_numpy(dtype=float).T, which),
        rows["latency_ms"].to_numpy() / 1e3,
        beside_s=np.zeros(len(rows)),
        is_module=np.zeros(len(rows), dtype=bool),
    )
    source = (
        f"{len(rows):,} {phase} attention kernels on {gpu.upper()} with a {kv} "
        f"cache, {shapes.max() + 1} head shapes, {SOURCE}"
    )
    sizes = {name: rows[name] for name in ("batch_size", "num_heads", "head_dim")}
    return timed.entry(source, _START[phase], given, shapes, _FOLDS, **sizes)
