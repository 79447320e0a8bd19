"""Multi-head latent attention with DeepSeek-V3's sizes: one kernel a row, or one whole block
(``mla_context_module``, ...); fits the entries ``mla_*`` of the table ``attention`` by engine.

``num_heads`` are those of one rank. A block's matrix products are priced as the simulator prices a
layer's mixer, and what else it launches is the calibration's ``module_s``. ``isl`` and ``step`` are
as in attention tables.

TensorRT-LLM's kernels were timed alone and inside whole blocks, SGLang's alone, vLLM's inside
blocks only. A fit takes the calibration's table ``gemm`` as it is in the files, so that one is
fitted first. TensorRT-LLM's entries stand for engines that have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration, load_calibration
from simulator.config.mixers.mla import LatentAttention
from simulator.cost.compute.roofline import RooflineModel
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
from simulator.work.layout import shard

_SIZES = ("batch_size", "isl", "step", "num_heads")
_GEMM_FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
}
"""Names in tables: the format here."""
_DECODES_ONE = "vllm"
"""The engine that computes prompts of one token by its kernels for decode."""
_HIDDEN_SIZE = 7168
"""Hidden size of DeepSeek-V3 (arXiv:2412.19437)."""
_TIMED = {"trtllm": (False, True), "sglang": (False,), "vllm": (True,)}
"""Engines whose kernels were timed: whether inside whole blocks."""
_COMPUTED = ("bfloat16", "float16", "fp8", "nan")
"""Formats that the measured kernels compute in."""


class Mla(KernelFamily):
    """Latent attention, kernels and whole blocks."""

    columns = ("gpu", "engine", "phase", "kv_cache_dtype", *_SIZES)
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "attention"
    sources = ("mla.csv.gz",)

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        sizes, wrong = whole_sizes(table, _SIZES, ("step",))
        absent = {"mla_dtype": "nan", "gemm_type": "nan"}
        keys = answering.words(table, "gpu", "engine", "phase", "kv_cache_dtype", **absent)
        keys["is_one"] = (sizes[1] == 1) & (keys["engine"] == _DECODES_ONE)
        for key, places in answering.group_rows(keys.assign(heads=sizes[3], wrong=wrong)):
            gpu, engine, phase, kv, computed, weights, is_one, _, why = key
            block = " block" if phase.endswith("module") else ""
            refused = refuse(phase, kv)
            if not refused and block and weights not in _GEMM_FORMATS:
                known = ", ".join(_GEMM_FORMATS)
                refused = f"no number format '{weights}' of a block's matrices; known: {known}"
            runs: Any = PHASES.get(phase, phase)
            case = _Case(
                sizes, engine, "decode" if is_one else runs, kv, computed, weights, bool(block)
            )
            group = f"{gpu} {engine} {runs}{block}"
            yield Part(places, gpu, engine, group, refused or why, case.estimate)

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        (rows,) = tables
        # A prompt of one token runs vLLM's kernels for decode.
        is_one = (rows["isl"] == 1) & (rows["engine"] == _DECODES_ONE)
        named = rows.assign(
            phase=rows["phase"].map(PHASES).where(~is_one, "decode"),
            is_module=rows["phase"].str.endswith("module"),
            kv=rows["kv_cache_dtype"].map(KV_FORMATS),
            computes_fp8=rows["mla_dtype"] == "fp8",
        )
        return fitting.fit_plan(load_plan("mla"), named, _fit_entry)


class _Case(NamedTuple):
    """Common values of rows of one kernel or block, named as in their table."""

    sizes: Floats
    """Sizes ``[c, n]`` of all rows of the table."""
    engine: str
    phase: Phase
    cache: str
    computed: str
    weights: str
    is_module: bool

    def estimate(
        self, accelerator: AcceleratorSpec, calibration: Calibration, places: Places
    ) -> Estimate:
        """Seconds of the rows at some places."""
        phase, kv, sizes = self.phase, KV_FORMATS[self.cache], self.sizes[:, places]
        computed = "fp8" if self.computed == "fp8" else ""
        fit = calibration.attention_fit(phase, kv, is_latent=True, computed=computed)
        num_heads = int(sizes[3, 0])
        batches = Batches.from_sizes(sizes)
        kernel = (accelerator, fit, _kernel_of_shape(num_heads, kv), phase)
        seconds, dtype = context_s(batches, [kernel]), _GEMM_FORMATS.get(self.weights, "bf16")
        doubts = of_hardware(fit, accelerator, "kernels of latent attention")
        if self.is_module:
            tokens = batches.batch_size * batches.new
            products_s = _products_s(accelerator, calibration, num_heads, dtype, tokens)
            seconds = seconds + products_s + fit.module_s
            if fit.kind != "assumed" and calibration.matrices(dtype).kind == "assumed":
                doubts.append(Doubt(f"no measured {dtype} products on its family"))
        if fit.kind != "assumed":
            doubts += self._doubts(kv)
        return make_estimate(seconds, fit, doubts, dict(zip(_SIZES, sizes, strict=True)), phase)

    def _doubts(self, kv: str) -> Iterator[Doubt]:
        timed = _TIMED.get(self.engine)
        yield from doubt_formats(self.computed, _COMPUTED, kv)
        if timed is None:
            yield Doubt(f"kernels of {self.engine} were not measured, TensorRT-LLM's were")
        elif self.is_module not in timed:
            measured = "kernels alone" if self.is_module else "whole blocks"
            yield Doubt(f"of {self.engine}, {measured} were measured")


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


def _kernel_of_shape(num_heads: int, kv_dtype: str) -> ContextKernel:
    """Work of one layer's kernel."""
    return context_kernel(_mixer(num_heads).context_terms()[0], 1, kv_dtype)


def _products_s(
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    num_heads: int,
    dtype: str,
    rows: NDArray[np.int64],
) -> Floats:
    """Seconds ``[n]`` of a block's matrix products for ``rows`` tokens. Norms on the hidden vectors
    and residuals are outside of it.
    """
    roofline = RooflineModel(accelerator, calibration)
    sizes, place = np.unique(rows, return_inverse=True)
    total = np.zeros(len(sizes))
    for linear in _mixer(num_heads).linears(_HIDDEN_SIZE):
        in_features, out_features, copies = shard(linear, 1)
        total += roofline.gemm_s(sizes, in_features, out_features, dtype, copies)
    return np.asarray(total[place], dtype=np.float64)


def _fit_entry(wanted: Wanted, rows: pd.DataFrame, given: dict[str, Any]) -> dict[str, Any]:
    heads, which = np.unique(rows["num_heads"].to_numpy(), return_inverse=True)
    engine, phase, kv = (str(wanted.rows[name]) for name in ("engine", "phase", "kv"))
    kernels = [_kernel_of_shape(int(num_heads), kv) for num_heads in heads]
    timed = Timed.read(wanted, rows, kernels, which, _beside_s(wanted.gpu, engine, rows))
    num_blocks = int(timed.is_module.sum())
    counts = {"kernels": len(rows) - num_blocks, "blocks": num_blocks}
    kinds = " and ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    source = (
        f"{kinds} of latent {phase} attention on {wanted.gpu.upper()} with "
        f"a {kv} cache, {len(heads)} head counts, {engine}, {SOURCE}"
    )
    sizes = {name: rows[name] for name in ("batch_size", "num_heads")}
    return timed.entry(load_plan("mla"), source, given, which, **sizes)


def _beside_s(gpu: str, engine: str, rows: pd.DataFrame) -> Floats:
    """Seconds ``[n]`` of the matrix products of blocks; 0 for kernels alone."""
    accelerator = fitting.accelerator_of(gpu)
    calibration = load_calibration(accelerator.calibration, gpu).choose_engine(engine)
    beside_s = np.zeros(len(rows))
    tokens = (rows["batch_size"] * rows["isl"]).to_numpy()
    blocks = rows.loc[rows["is_module"], ["gemm_type", "num_heads"]]
    for (weights, heads), own in answering.group_rows(blocks):
        places, dtype = blocks.index.to_numpy()[own], _GEMM_FORMATS[weights]
        beside_s[places] = _products_s(accelerator, calibration, heads, dtype, tokens[places])
    return beside_s
