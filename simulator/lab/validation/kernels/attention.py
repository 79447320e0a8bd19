"""Grouped-query and multi-head attention, one kernel a row, the writing of new keys and values into
the cache included; fits the entries of the table ``attention`` for any engine.

A sequence with one new token is computed by the kernels for decode, whatever the phase is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from simulator.config.calibration import ANY, Calibration
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.lab.validation.extrapolation import Doubt
from simulator.lab.validation.kernels._context import KV_FORMATS, Case, ContextFamily
from simulator.work.context import ContextKernel, context_kernel

_SIZES = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
_ENGINES = (ANY, "nan", "vllm")
"""Engines whose kernels were measured: where a table says no engine, its kernels are vLLM's."""


class Attention(ContextFamily):
    """Grouped-query and multi-head attention, full or over a sliding window."""

    sizes = (*_SIZES, "window_size")
    columns = ("gpu", "phase", "kv_cache_dtype", *sizes)
    sources = ("attention.csv.gz",)
    may_be_none = ("step", "window_size")
    computed, usual = "attn_dtype", "bfloat16"
    formats = ("bfloat16", "float16", "half", "bf16", "fp16")
    is_latent = False
    what, shapes = "attention kernels", "head shapes"
    domain = ("batch_size", "num_heads", "head_dim")

    def name(self, case: Case) -> str:
        engine = case.engine if case.engine != ANY else ""
        cache = KV_FORMATS.get(case.cache, case.cache)
        return " ".join(filter(None, (case.gpu, engine, case.runs, cache)))

    def refuse(self, case: Case) -> str:
        num_heads, num_kv_heads, *_ = case.heads
        return "num_key_value_heads does not divide num_heads" if num_heads % num_kv_heads else ""

    def doubt(self, case: Case, calibration: Calibration) -> Iterator[Doubt]:
        yield from super().doubt(case, calibration)
        if case.engine not in _ENGINES:
            yield Doubt(f"kernels of {case.engine} were not measured, vLLM's were")

    def kernel(self, heads: Sequence[int], kv_dtype: str) -> ContextKernel:
        num_heads, num_kv_heads, size, window = heads
        counts: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
        mixer = GroupedQueryAttention(kind="gqa", **counts, head_size=size, window=window or None)
        return context_kernel(mixer.context_terms()[0], 1, kv_dtype)

    def describe(self, rows: pd.DataFrame, phase: str) -> str:
        return f"{len(rows):,} {phase} attention kernels"
