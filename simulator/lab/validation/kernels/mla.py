"""Multi-head latent attention with DeepSeek-V3's sizes: one kernel a row, or one whole block
(``mla_context_module``, ...); fits the entries ``mla_*`` of the table ``attention`` by engine.

``num_heads`` are those of one rank. A block's matrix products are priced as the simulator prices a
layer's mixer, and what else it launches is the calibration's ``module_s``.

TensorRT-LLM's kernels were timed alone and inside whole blocks, SGLang's alone, vLLM's inside
blocks only. A fit takes the calibration's table ``gemm`` as it is in the files, so that one is
fitted first. TensorRT-LLM's entries stand for engines that have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from simulator.base.arrays import Floats, Ints
from simulator.config.calibration import Calibration
from simulator.config.mixers.mla import LatentAttention
from simulator.cost.compute.roofline import RooflineModel
from simulator.lab.validation.extrapolation import Doubt
from simulator.lab.validation.kernels._context import Case, ContextFamily
from simulator.work.context import ContextKernel, context_kernel
from simulator.work.layout import shard

_GEMM_FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
}
"""Names in tables: the format here."""
_HIDDEN_SIZE = 7168
"""Hidden size of DeepSeek-V3 (arXiv:2412.19437)."""
_TIMED = {"trtllm": (False, True), "sglang": (False,), "vllm": (True,)}
"""Engines whose kernels were timed: whether inside whole blocks."""


class Mla(ContextFamily):
    """Latent attention, kernels and whole blocks."""

    sizes = ("batch_size", "isl", "step", "num_heads")
    columns = ("gpu", "engine", "phase", "kv_cache_dtype", *sizes)
    sources = ("mla.csv.gz",)
    computed, usual = "mla_dtype", "nan"
    formats = ("bfloat16", "float16", "fp8", "nan")
    is_latent = True
    one_token = "vllm"
    what, shapes = "kernels of latent attention", "head counts"
    domain = ("batch_size", "num_heads")

    def name(self, case: Case) -> str:
        return f"{case.gpu} {case.engine} {case.runs}{' block' if case.is_block else ''}"

    def refuse(self, case: Case) -> str:
        if not case.is_block or case.weights in _GEMM_FORMATS:
            return ""
        known = ", ".join(_GEMM_FORMATS)
        return f"no number format '{case.weights}' of a block's matrices; known: {known}"

    def doubt(self, case: Case, calibration: Calibration) -> Iterator[Doubt]:
        dtype, timed = _GEMM_FORMATS.get(case.weights, ""), _TIMED.get(case.engine)
        if case.is_block and calibration.matrices(dtype).kind == "assumed":
            yield Doubt(f"no measured {dtype} products on its family")
        yield from super().doubt(case, calibration)
        if timed is None:
            yield Doubt(f"kernels of {case.engine} were not measured, TensorRT-LLM's were")
        elif case.is_block not in timed:
            measured = "kernels alone" if case.is_block else "whole blocks"
            yield Doubt(f"of {case.engine}, {measured} were measured")

    def kernel(self, heads: Sequence[int], kv_dtype: str) -> ContextKernel:
        return context_kernel(_mixer(*heads).context_terms()[0], 1, kv_dtype)

    def price_block(
        self, weights: str, heads: Sequence[int], prices: RooflineModel, tokens: Ints
    ) -> Floats:
        """Norms on the hidden vectors and residuals are outside of a block."""
        sizes, place = np.unique(tokens, return_inverse=True)
        total = np.zeros(len(sizes))
        for linear in _mixer(*heads).linears(_HIDDEN_SIZE):
            in_features, out_features, copies = shard(linear, 1)
            dtype = _GEMM_FORMATS[weights]
            total += prices.gemm_s(sizes, in_features, out_features, dtype, copies)
        return np.asarray(total[place], dtype=np.float64)

    def describe(self, rows: pd.DataFrame, phase: str) -> str:
        num_blocks = int(rows["is_module"].sum())
        counts = {"kernels": len(rows) - num_blocks, "blocks": num_blocks}
        kinds = " and ".join(f"{count:,} {word}" for word, count in counts.items() if count)
        return f"{kinds} of latent {phase} attention"


def _mixer(num_heads: int) -> LatentAttention:
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
