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

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, Calibration, load_calibration
from simulator.config.calibration.attention import AttentionFit
from simulator.config.mixers.mla import LatentAttention
from simulator.cost.compute.roofline import RooflineModel
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
from simulator.validation.kernels._fitting import GPUS, Chosen, Floats, Tables, Values
from simulator.work.context_kernels import ContextKernel, context_kernel
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

_FOLDS = 4
"""Parts of the head counts, each of which is left out once."""
_START: dict[Phase, Values] = {
    "prefill": {
        "compute_fraction": 0.7,
        "softmax_s": 2e-11,
        "memory_fraction": 0.7,
        "floor_s": 15e-6,
        "row_s": 2e-8,
        "longest_rows": 64.0,
        "append_s": 1e-10,
    },
    "decode": {
        "compute_fraction": 0.7,
        "memory_fraction": 0.8,
        "floor_s": 12e-6,
        "overlap": 1.5,
        "row_s": 1e-7,
        "sequence_s": 4e-6,
        "split_s": 1e-6,
    },
}
"""Coefficients that are fitted, and where the search for them starts."""
_MODULE = {"module_s": 1e-5}
"""Beside them where whole blocks were timed."""
_SPLIT_ENTRIES = {"h100": 128.0, "b200": 256.0}
"""Entries of the cache from which on a view is split in decode: times jump there."""
_PASSES = {"entry_passes": 10.0}
"""In the place of the memory rate where a cache is converted before it is read."""
_BEFORE_CONVERTING = 0.87
"""Share of the memory rate that SGLang's kernels reach where they need not convert: what is taken
while the passes are searched for."""


class _Job(NamedTuple):
    """One entry to fit."""

    gpu: str
    engine: str
    phase: Phase
    kv: str
    given: dict[str, Any] = {}
    """Fields that are known."""
    computed: str = ""
    """The other format, of an engine with kernels that compute in several."""
    converts: bool = False
    """Whether the cache is converted before it is read."""

    @property
    def name(self) -> str:
        """Name of the entry."""
        cache, computed = ("" if self.kv == "bf16" else f"_{self.kv}"), self.computed
        return f"mla_{self.phase}{cache}" + (f"_{computed}" if computed else "")


_TILES: dict[str, Any] = {"tile_rows": 128}
_FP8: dict[str, Any] = {"computed_as": "fp8"}
_ABSORBS: dict[str, Any] = {"absorbs": True}
_JOBS = (
    _Job("h100", "trtllm", "prefill", "bf16", _TILES),
    _Job("h100", "trtllm", "prefill", "fp8", _TILES),
    _Job("h100", "trtllm", "decode", "bf16"),
    _Job("h100", "trtllm", "decode", "fp8", _FP8),
    _Job("h100", "sglang", "prefill", "bf16", _ABSORBS),
    _Job("h100", "sglang", "prefill", "fp8", _ABSORBS),
    _Job("h100", "sglang", "decode", "bf16"),
    _Job("h100", "sglang", "decode", "fp8", converts=True),
    _Job("h100", "vllm", "prefill", "bf16", _TILES),
    _Job("h100", "vllm", "prefill", "fp8", _TILES),
    _Job("h100", "vllm", "decode", "bf16"),
    _Job("h100", "vllm", "decode", "fp8"),
    _Job("b200", "trtllm", "prefill", "bf16", _TILES),
    _Job("b200", "trtllm", "prefill", "fp8", _TILES | _FP8),
    _Job("b200", "trtllm", "decode", "bf16"),
    _Job("b200", "trtllm", "decode", "fp8", _FP8),
    _Job("b200", "sglang", "prefill", "bf16", _TILES),
    _Job("b200", "sglang", "prefill", "fp8", _TILES | _FP8),
    _Job("b200", "sglang", "decode", "bf16"),
    _Job("b200", "sglang", "decode", "fp8", _FP8),
    _Job("b200", "vllm", "prefill", "bf16", _TILES),
    _Job("b200", "vllm", "prefill", "fp8", _TILES),
    _Job("b200", "vllm", "prefill", "fp8", _TILES | _FP8, "fp8"),
    _Job("b200", "vllm", "decode", "bf16"),
    _Job("b200", "vllm", "decode", "fp8", _FP8),
)


class Mla(KernelFamily):
    """Latent attention, kernels and whole blocks."""

    columns = ("gpu", "engine", "phase", "kv_cache_dtype", *_SIZES)
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "attention"
    sources = ("mla.csv.gz",)

    def answer(self, table: pd.DataFrame) -> Answers:
        require(table, self.columns, "mla table")
        answers = Answers.make_unsupported(len(table), len(self.measures))
        sizes, wrong = whole_sizes(table, _SIZES, ("step",))
        absent = {"mla_dtype": "nan", "gemm_type": "nan"}
        keys = answering.words(table, "gpu", "engine", "phase", "kv_cache_dtype", **absent)
        keys["is_one"] = (sizes[1] == 1) & (keys["engine"] == _DECODES_ONE)
        for key, places in answering.group_rows(keys.assign(heads=sizes[3], wrong=wrong)):
            gpu, engine, phase, kv, computed, weights, is_one, _, why = key
            block = " block" if phase.endswith("module") else ""
            reason = refuse(gpu, engine, phase, kv)
            if not reason and block and weights not in _GEMM_FORMATS:
                known = ", ".join(_GEMM_FORMATS)
                reason = f"no number format '{weights}' of a block's matrices; known: {known}"
            reason = reason or why
            group = f"{gpu} {engine} {PHASES.get(phase, phase)}{block}"
            answering.name_group(answers, places, group, reason)
            found = find_calibrated(gpu, engine)
            if not reason and found is not None:
                kernel_phase: Phase = "decode" if is_one else PHASES[phase]
                case = _Case(*found, engine, kernel_phase, kv, computed, weights, bool(block))
                answering.fill(answers, places, case.estimate(sizes[:, places]))
        return answers

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        (rows,) = tables
        found: Tables = {}
        for job in _JOBS:
            own = _rows_of(job, rows)
            if own.empty:
                continue
            engines = found.setdefault(GPUS[job.gpu][0], {})
            alone = engines.get(ANY, {}).get(job._replace(computed="").name)
            given = {}
            if job.engine == "vllm" and alone:
                # Blocks do not tell the kernel's floor from what else they take.
                given = {"floor_s": alone["floor_s"]}
            engine = ANY if job.engine == "trtllm" else job.engine
            engines.setdefault(engine, {})[job.name] = _fit_entry(job, own, given)
        return found


class _Case(NamedTuple):
    """Common values of rows of one kernel or block, named as in their table."""

    accelerator: AcceleratorSpec
    calibration: Calibration
    engine: str
    phase: Phase
    cache: str
    computed: str
    weights: str
    is_module: bool

    def estimate(self, sizes: Floats) -> Estimate:
        """Seconds of rows with columns ``[c, n]``."""
        phase, kv = self.phase, KV_FORMATS[self.cache]
        computed = "fp8" if self.computed == "fp8" else ""
        fit = self.calibration.attention_fit(phase, kv, is_latent=True, computed=computed)
        num_heads = int(sizes[3, 0])
        batches = Batches.from_sizes(sizes)
        kernel = (self.accelerator, fit, _kernel_of_shape(num_heads, kv), phase)
        seconds = context_s(batches, [kernel])
        if self.is_module:
            hardware = (self.accelerator, self.calibration)
            dtype = _GEMM_FORMATS[self.weights]
            tokens = batches.batch_size * batches.new
            products_s = _products_s(*hardware, num_heads, dtype, tokens)
            seconds = seconds + products_s + fit.module_s
        named = dict(zip(_SIZES, sizes, strict=True))
        return make_estimate(seconds, fit, self._doubts(fit, kv), named, phase)

    def _doubts(self, fit: AttentionFit, kv: str) -> list[Doubt]:
        doubts = of_hardware(fit, self.accelerator, "kernels of latent attention")
        if fit.kind == "assumed":
            return doubts
        dtype, timed = _GEMM_FORMATS.get(self.weights, "bf16"), _TIMED.get(self.engine)
        if self.is_module and self.calibration.matrices(dtype).kind == "assumed":
            doubts.append(Doubt(f"no measured {dtype} products on its family"))
        doubts += doubt_formats(self.computed, _COMPUTED, kv)
        if timed is None:
            why = f"kernels of {self.engine} were not measured, TensorRT-LLM's were"
            doubts.append(Doubt(why))
        elif self.is_module not in timed:
            measured = "kernels alone" if self.is_module else "whole blocks"
            doubts.append(Doubt(f"of {self.engine}, {measured} were measured"))
        return doubts


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


def _rows_of(job: _Job, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of an entry."""
    # A prompt of one token runs vLLM's kernels for decode.
    is_decode = (rows["phase"].map(PHASES) == "decode") | (
        (rows["isl"] == 1) & (rows["engine"] == _DECODES_ONE)
    )
    chosen = (
        (is_decode == (job.phase == "decode"))
        & (rows["gpu"] == job.gpu)
        & (rows["engine"] == job.engine)
        & (rows["kv_cache_dtype"].map(KV_FORMATS) == job.kv)
    )
    if job.phase == "prefill":
        chosen &= (rows["mla_dtype"] == "fp8") == bool(job.computed)
    return rows[chosen].reset_index(drop=True)


def _fit_entry(job: _Job, rows: pd.DataFrame, known: dict[str, Any]) -> dict[str, Any]:
    """Entry of a job.

    Args:
        known: further fields that are not searched for.
    """
    heads, which = np.unique(rows["num_heads"].to_numpy(), return_inverse=True)
    is_module = rows["phase"].str.endswith("module").to_numpy()
    timed = Timed(
        fitting.accelerator_of(job.gpu),
        [_kernel_of_shape(int(num_heads), job.kv) for num_heads in heads],
        job.phase,
        Batches.from_sizes(rows[list(_SIZES)].to_numpy(dtype=float).T, which),
        rows["latency_ms"].to_numpy() / 1e3,
        _beside_s(job, rows, is_module),
        is_module,
    )
    start, given = _START[job.phase] | (_MODULE if is_module.any() else {}), job.given | known
    if job.phase == "decode":
        given = given | {"split_entries": _SPLIT_ENTRIES[job.gpu]}
    if job.converts:
        start, given = start | _PASSES, given | {"memory_fraction": _BEFORE_CONVERTING}
    start = {name: value for name, value in start.items() if name not in given}
    counts = {"kernels": int((~is_module).sum()), "blocks": int(is_module.sum())}
    kinds = " and ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    source = (
        f"{kinds} of latent {job.phase} attention on {job.gpu.upper()} with "
        f"a {job.kv} cache, {len(heads)} head counts, {job.engine}, {SOURCE}"
    )
    sizes = {name: rows[name] for name in ("batch_size", "num_heads")}
    return timed.entry(source, start, given, which, _FOLDS, **sizes)


def _beside_s(job: _Job, rows: pd.DataFrame, is_module: Chosen) -> Floats:
    """Seconds ``[n]`` of the matrix products of blocks; 0 for kernels alone."""
    accelerator = fitting.accelerator_of(job.gpu)
    calibration = load_calibration(accelerator.calibration, job.gpu).choose_engine(job.engine)
    beside_s = np.zeros(len(rows))
    tokens = (rows["batch_size"] * rows["isl"]).to_numpy()
    blocks = rows.loc[is_module, ["gemm_type", "num_heads"]]
    for (weights, heads), own in answering.group_rows(blocks):
        places, dtype = np.flatnonzero(is_module)[own], _GEMM_FORMATS[weights]
        beside_s[places] = _products_s(accelerator, calibration, heads, dtype, tokens[places])
    return beside_s
