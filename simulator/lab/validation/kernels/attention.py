"""Grouped-query and multi-head attention, one kernel a row, the writing of new keys and values into
the cache included; fits the entries of the table ``attention`` for any engine.

A row of the context phase has ``isl`` new tokens behind ``step`` cached ones in each sequence; one
of the generation phase likewise, with one new token. A sequence with one new token is computed by
the kernels for decode, whatever the phase is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, Calibration
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.lab.validation import Measure
from simulator.lab.validation.extrapolation import Doubt, of_hardware
from simulator.lab.validation.kernels import SOURCE, KernelFamily
from simulator.lab.validation.kernels import _answering as answering
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels._answering import Estimate, Part, Places
from simulator.lab.validation.kernels._context import (
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
from simulator.lab.validation.kernels._fitting import Floats, Tables, Wanted, load_plan
from simulator.work.context import ContextKernel, context_kernel

_HEADS = ("num_heads", "num_key_value_heads", "head_dim", "window_size")
_SIZES = ("batch_size", "isl", "step", *_HEADS)
_COMPUTED = ("bfloat16", "float16", "half", "bf16", "fp16")
"""Formats that the measured kernels compute in."""
_ENGINES = (ANY, "nan", "vllm")
"""Engines whose kernels were measured: where a table says no engine, its kernels are vLLM's."""


class Attention(KernelFamily):
    """Grouped-query and multi-head attention, full or over a sliding window."""

    columns = ("gpu", "phase", "kv_cache_dtype", *_SIZES)
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "attention"
    sources = ("attention.csv.gz",)

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        sizes, wrong = whole_sizes(table, _SIZES, ("step", "window_size"))
        absent = {"engine": ANY, "attn_dtype": "bfloat16"}
        keys = answering.words(table, "gpu", "phase", "kv_cache_dtype", **absent)
        keys = keys.assign(is_one=sizes[1] == 1, **dict(zip(_HEADS, sizes[3:], strict=True)))
        for key, places in answering.group_rows(keys.assign(wrong=wrong)):
            gpu, phase, kv, engine, computed, is_one, *shape, why = key
            refused = refuse(phase, kv) or why
            if not refused and shape[0] % shape[1]:
                refused = "num_key_value_heads does not divide num_heads"
            known = PHASES.get(phase, phase), KV_FORMATS.get(kv, kv)
            group = " ".join(filter(None, (gpu, engine * (engine != ANY), *known)))
            kernel: tuple[Any, ...] = ("decode" if is_one else known[0], known[1], computed)
            yield Part(
                places, gpu, engine, group, refused, partial(_estimate, sizes, engine, *kernel)
            )

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        (rows,) = tables
        # A prompt of one token runs the kernels for decode.
        phase = rows["phase"].map(PHASES).where(rows["isl"] != 1, "decode")
        kv = rows["kv_cache_dtype"].map(KV_FORMATS)
        return fitting.fit_plan(load_plan("attention"), rows.assign(phase=phase, kv=kv), _fit_entry)


def _estimate(
    sizes: Floats,
    engine: str,
    phase: Phase,
    kv: str,
    computed: str,
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    places: Places,
) -> Estimate:
    """Seconds of rows of one kernel."""
    fit = calibration.attention_fit(phase, kv, is_latent=False)
    sizes = sizes[:, places]
    kernel = (accelerator, fit, _kernel_of_shape(sizes[3:, 0].astype(int).tolist(), kv), phase)
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


def _fit_entry(wanted: Wanted, rows: pd.DataFrame, given: dict[str, Any]) -> dict[str, Any]:
    shapes = rows.groupby(list(_HEADS[:3])).ngroup().to_numpy()
    kernels = rows[list(_HEADS)].drop_duplicates().reset_index(drop=True)
    which = rows.merge(kernels.reset_index(), on=list(_HEADS), how="left")["index"].to_numpy()
    phase, kv = (str(wanted.rows[name]) for name in ("phase", "kv"))
    made = [_kernel_of_shape([int(size) for size in row], kv) for row in kernels.to_numpy()]
    source = (
        f"{len(rows):,} {phase} attention kernels on {wanted.gpu.upper()} with a {kv} "
        f"cache, {shapes.max() + 1} head shapes, {SOURCE}"
    )
    sizes = {name: rows[name] for name in ("batch_size", "num_heads", "head_dim")}
    timed = Timed.read(wanted, rows, made, which)
    return timed.entry(load_plan("attention"), source, given, shapes, **sizes)
