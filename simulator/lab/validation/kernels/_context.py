"""Attention kernels of batches whose sequences are alike, as tables time them: priced by the
simulator's own formula, and the search for its coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import AttentionFit
from simulator.cost.kernels.attention import context_rates, kernels_s
from simulator.lab.validation.extrapolation import OUTSIDE, Doubt
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels._answering import Estimate, unknown_name
from simulator.lab.validation.kernels._fitting import (
    Chosen,
    FitPlan,
    Floats,
    Groups,
    Search,
    Values,
    Wanted,
)
from simulator.lab.validation.sizes import numbers, refusals
from simulator.work.context import ContextKernel, uniform_sums

Phase = Literal["prefill", "decode"]
Ints = NDArray[np.int64]

KV_FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "int8": "int8",
}
"""Names in tables: the format here."""
_MEASURED = ("bf16", "fp16", "fp8")
"""Formats of a cache that were measured."""
BEHIND = Doubt("tokens cached before a prompt were not measured", OUTSIDE)
_MOST_SEQUENCES = 2.0**20
"""Most sequences of one batch: far more than any cache holds."""
_MOST_TOKENS = 2.0**31
"""Tokens of one batch: at 128 bytes each they fill the memory of the largest GPU."""
PHASES: dict[str, Phase] = {
    "context_attention": "prefill",
    "generation_attention": "decode",
    "context_mla": "prefill",
    "generation_mla": "decode",
    "mla_context_module": "prefill",
    "mla_generation_module": "decode",
    "context": "prefill",
    "generation": "decode",
}


class Batches(NamedTuple):
    """Batches ``[n]`` of equal sequences, and which kernel each is for."""

    batch_size: Ints
    context: Ints
    """Tokens of a sequence that are in the cache already."""
    new: Ints
    kernel: Ints
    """Place in a list of kernels."""

    @classmethod
    def from_sizes(cls, sizes: Floats, kernel: int | NDArray[np.int64] = 0) -> Batches:
        """Batches of columns ``[c, n]``: ``batch_size``, new tokens and context come first."""
        batch_size, new, context = sizes[:3].astype(np.int64)
        return cls(batch_size, context, new, np.broadcast_to(kernel, batch_size.shape))

    def take(self, rows: NDArray[np.bool_]) -> Batches:
        """Some of them."""
        return Batches(*(column[rows] for column in self))


def context_s(
    batches: Batches, kernels: Sequence[tuple[AcceleratorSpec, AttentionFit, ContextKernel, Phase]]
) -> NDArray[np.float64]:
    """Seconds ``[n]`` of each batch's kernel."""
    rates = [context_rates(*kernel) for kernel in kernels]
    windows = [
        kernel.window + int(rate.window_block)
        for (_, _, kernel, _), rate in zip(kernels, rates, strict=True)
    ]
    compressions = [kernel.compression for _, _, kernel, _ in kernels]
    tile_rows = np.array([rate.tile_rows for rate in rates])
    windows_n, compressions_n = np.array([windows, compressions], dtype=np.int64)[:, batches.kernel]
    loads = batches.batch_size, batches.context, batches.new
    sums_nk = uniform_sums(*loads, windows_n, compressions_n, tile_rows[batches.kernel])
    seconds: NDArray[np.float64] = kernels_s(np.array(rates)[batches.kernel], sums_nk)
    return seconds


def whole_sizes(
    table: pd.DataFrame, columns: Sequence[str], may_be_none: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
    """Columns ``[c, n]`` without fractions, and why each row's are no sizes of a kernel, or ``""``.

    Args:
        columns: ``batch_size``, ``isl`` and ``step`` among them.
        may_be_none: those that may be 0.
    """
    sizes = numbers(table, columns)
    wrong = refusals(sizes, dict.fromkeys(may_be_none, 0.0), {"batch_size": _MOST_SEQUENCES})
    whole = np.floor(np.stack([np.where(wrong == "", values, 1.0) for values in sizes.values()]))
    named = dict(zip(columns, whole, strict=True))
    is_full = named["batch_size"] * (named["isl"] + named["step"]) > _MOST_TOKENS
    wrong[is_full & (wrong == "")] = (
        f"batch_size times isl + step is above {_MOST_TOKENS:,.0f} tokens, "
        "more than any cache holds"
    )
    return whole, wrong


def refuse(phase: str, kv: str) -> str:
    """Reason to refuse a phase or a cache's format that is not known, or ``""``."""
    if phase not in PHASES:
        return unknown_name("phase", phase, PHASES)
    return "" if kv in KV_FORMATS else unknown_name("cache format", kv, KV_FORMATS)


def make_estimate(
    seconds: Floats,
    fit: AttentionFit,
    doubts: Sequence[Doubt],
    sizes: Mapping[str, Floats],
    phase: Phase,
) -> Estimate:
    """Estimate of rows of one kernel.

    Args:
        sizes: ``isl`` and ``step`` among them.
    """
    quantities = {**sizes, "context": sizes["isl"] + sizes["step"]}
    is_behind = (sizes["step"] > 0) & (phase == "prefill")
    return Estimate(seconds, fit, doubts, quantities, [(BEHIND, is_behind)])


def doubt_formats(computed: str, known: Sequence[str], kv_dtype: str) -> Iterator[Doubt]:
    """Doubts about what a measured kernel computes in, where it is none of the ``known`` formats,
    and about its cache.
    """
    if computed not in known:
        yield Doubt(f"attention computed in {computed} was not measured")
    if kv_dtype not in _MEASURED:
        yield Doubt(f"a cache in {kv_dtype} was not measured")


class Timed(NamedTuple):
    """Measured batches of one entry."""

    wanted: Wanted
    kernels: Sequence[ContextKernel]
    phase: Phase
    batches: Batches
    measured_s: Floats
    beside_s: Floats
    """Seconds that are priced already: matrix products of a block that was timed whole."""
    is_module: Chosen
    """Whether a whole block was timed."""

    @classmethod
    def read(
        cls,
        wanted: Wanted,
        rows: pd.DataFrame,
        kernels: Sequence[ContextKernel],
        which: Ints,
        beside_s: Floats | None = None,
    ) -> Timed:
        """Read rows that have ``phase`` and, where blocks were timed whole, ``is_module``.

        Args:
            which: place of each row's kernel in ``kernels``.
        """
        sizes = rows[["batch_size", "isl", "step"]].to_numpy(dtype=float).T
        nothing = np.zeros(len(rows))
        return cls(
            wanted,
            kernels,
            rows["phase"].iloc[0],
            Batches.from_sizes(sizes, which),
            rows["latency_ms"].to_numpy() / 1e3,
            nothing if beside_s is None else beside_s,
            np.asarray(rows.get("is_module", nothing), dtype=bool),
        )

    def entry(
        self, plan: FitPlan, source: str, given: dict[str, Any], shapes: Groups, **sizes: Any
    ) -> dict[str, Any]:
        """Entry of a calibration, whole shapes left out in turn.

        Args:
            given: fields that are known.
            shapes: number of each row's shape, from 0.
            sizes: of the rows, by the names of the entry's domain.
        """
        accelerator = fitting.accelerator_of(self.wanted.gpu)

        def build(values: Values) -> AttentionFit:
            return AttentionFit.model_construct(kind="fitted", source="", **given | values)

        def predict(fit: AttentionFit, rows: Chosen) -> Floats:
            kernels = [(accelerator, fit, kernel, self.phase) for kernel in self.kernels]
            module_s = np.where(self.is_module[rows], fit.module_s, 0.0)
            return context_s(self.batches.take(rows), kernels) + self.beside_s[rows] + module_s

        sets = [name for name in self.wanted.search if name != "module" or self.is_module.any()]
        start = {name: value for name, value in plan.begin(*sets).items() if name not in given}
        search = Search(plan, self.measured_s, build, predict, start)
        fitted = search.solve()
        folds = fitting.make_folds(shapes, plan.folds)
        predicted = search.leave_out(folds, {name: getattr(fitted, name) for name in start})
        seen = self.batches.new + self.batches.context
        return fitting.entry(
            source,
            accelerator,
            fitting.residuals(self.measured_s, predicted, folds),
            **{name: value for name, value in fitted if name in start or name in given},
            domain=fitting.domain_of({**sizes, "context": seen}),
        )
