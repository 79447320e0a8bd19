"""Attention kernels of batches whose sequences are alike, as tables time them: priced by the
simulator's own formula, and the search for its coefficients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats, Ints
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, AttentionFit, Calibration, load_calibration
from simulator.cost.compute.roofline import RooflineModel
from simulator.cost.kernels.attention import context_rates, kernels_s
from simulator.lab.validation import Measure
from simulator.lab.validation.extrapolation import OUTSIDE, Doubt, of_hardware
from simulator.lab.validation.kernels import (
    SOURCE,
    Estimate,
    KernelFamily,
    Part,
    Places,
    group_rows,
    unknown_name,
    words,
)
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels._fitting import Entries, Search, Values, Wanted
from simulator.lab.validation.sizes import numbers, refusals
from simulator.work.context import ContextKernel, uniform_sums

Phase = Literal["prefill", "decode"]

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
    def from_sizes(cls, sizes: Floats, kernel: int | Ints = 0) -> Batches:
        """Batches of columns ``[c, n]``: ``batch_size``, new tokens and context come first."""
        batch_size, new, context = sizes[:3].astype(np.int64)
        return cls(batch_size, context, new, np.broadcast_to(kernel, batch_size.shape))


def context_s(
    batches: Batches, kernels: Sequence[tuple[AcceleratorSpec, AttentionFit, ContextKernel, Phase]]
) -> Floats:
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
    return kernels_s(np.array(rates)[batches.kernel], sums_nk)


class Case(NamedTuple):
    """Rows of one kernel, or of one block around it, which differ in their load."""

    gpu: str
    phase: str
    """Name in the table, likewise the formats."""
    cache: str
    engine: str
    computed: str
    """Format that the kernel computes in."""
    weights: str
    """Format of a block's matrices."""
    is_one: bool
    """Whether kernels for decode compute them, since they have one new token."""
    wrong: str
    """Why their sizes are none of a kernel, or ``""``."""
    heads: tuple[int, ...]
    """Sizes of the kernel beside its load."""

    @property
    def runs(self) -> str:
        """Phase, as far as it is known."""
        return PHASES.get(self.phase, self.phase)

    @property
    def is_block(self) -> bool:
        """Whether a whole block was timed."""
        return self.phase.endswith("module")


class ContextFamily(KernelFamily):
    """Kernels of attention, one a row, with ``isl`` new tokens behind ``step`` cached ones in each
    sequence; those for decode likewise, with one new token.
    """

    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "attention"
    sizes: ClassVar[tuple[str, ...]]
    """Columns of sizes: ``batch_size``, ``isl`` and ``step``, then those of the heads."""
    may_be_none: ClassVar[tuple[str, ...]] = ("step",)
    """Sizes that may be 0."""
    computed: ClassVar[str]
    """Column of the format that a kernel computes in."""
    usual: ClassVar[str]
    """Format where a table does not have that column."""
    formats: ClassVar[tuple[str, ...]]
    """Formats that the measured kernels compute in."""
    is_latent: ClassVar[bool]
    one_token: ClassVar[str] = ""
    """Engine that computes prompts of one token by its kernels for decode; absent = all do."""
    what: ClassVar[str]
    """Kernels in words."""
    shapes: ClassVar[str]
    """Shapes of heads, whole ones of which are left out of a fit, in words."""
    domain: ClassVar[tuple[str, ...]]
    """Sizes that an entry states the range of, beside the context."""

    @abstractmethod
    def name(self, case: Case) -> str:
        """Name that errors of a case are reported by."""

    @abstractmethod
    def kernel(self, heads: Sequence[int], kv_dtype: str) -> ContextKernel:
        """Work of one layer's kernel."""

    @abstractmethod
    def describe(self, rows: pd.DataFrame, phase: str) -> str:
        """Describe the kernels that were timed, with their number."""

    def refuse(self, case: Case) -> str:
        """Reason to refuse a case, or ``""``."""
        return ""

    def doubt(self, case: Case, calibration: Calibration) -> Iterator[Doubt]:
        """Doubts about a case of measured kernels."""
        if case.computed not in self.formats:
            yield Doubt(f"attention computed in {case.computed} was not measured")
        if KV_FORMATS[case.cache] not in _MEASURED:
            yield Doubt(f"a cache in {KV_FORMATS[case.cache]} was not measured")

    def price_block(
        self, weights: str, heads: Sequence[int], prices: RooflineModel, tokens: Ints
    ) -> Floats:
        """Seconds ``[n]`` of what a block multiplies beside its kernel, for so many new tokens;
        none where only kernels were timed.

        Args:
            weights: format of its matrices, as tables write it.
        """
        return np.zeros(len(tokens))

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        sizes, wrong = self._read_sizes(table)
        keys = self._read_words(table)
        heads = dict(zip(self.sizes[3:], sizes[3:].astype(int), strict=True))
        is_one = self._is_decode(keys, sizes[1])
        for key, places in group_rows(keys.assign(is_one=is_one, wrong=wrong, **heads)):
            case = Case._make((*key[:8], key[8:]))
            refused = ""
            if case.phase not in PHASES:
                refused = unknown_name("phase", case.phase, PHASES)
            elif case.cache not in KV_FORMATS:
                refused = unknown_name("cache format", case.cache, KV_FORMATS)
            refused = refused or self.refuse(case) or case.wrong
            price = partial(self._estimate, case, sizes)
            yield Part(places, case.gpu, case.engine, self.name(case), refused, price)

    def _read_sizes(self, table: pd.DataFrame) -> tuple[Floats, NDArray[np.object_]]:
        """Sizes ``[c, n]`` without fractions, and why each row's are none, or ``""``."""
        sizes, largest = numbers(table, self.sizes), {"batch_size": _MOST_SEQUENCES}
        wrong = refusals(sizes, dict.fromkeys(self.may_be_none, 0.0), largest)
        whole = np.floor([np.where(wrong == "", values, 1.0) for values in sizes.values()])
        batch_size, new, context = whole[:3]
        wrong[(batch_size * (new + context) > _MOST_TOKENS) & (wrong == "")] = (
            f"batch_size times isl + step is above {_MOST_TOKENS:,.0f} tokens, "
            "more than any cache holds"
        )
        return whole, wrong

    def _read_words(self, table: pd.DataFrame) -> pd.DataFrame:
        absent = {"engine": ANY, self.computed: self.usual, "gemm_type": "nan"}
        return words(table, "gpu", "phase", "kv_cache_dtype", **absent)

    def _is_decode(self, keys: pd.DataFrame, new: pd.Series | Floats) -> pd.Series:
        """Rows of single new tokens that kernels for decode compute."""
        return (new == 1) & (keys["engine"].eq(self.one_token) | (not self.one_token))

    def _estimate(
        self,
        case: Case,
        sizes: Floats,
        accelerator: AcceleratorSpec,
        calibration: Calibration,
        places: Places,
    ) -> Estimate:
        sizes, kv = sizes[:, places], KV_FORMATS[case.cache]
        phase: Phase = "decode" if case.is_one else PHASES[case.phase]
        computed = "fp8" if case.computed == "fp8" else ""
        fit = calibration.attention_fit(phase, kv, is_latent=self.is_latent, computed=computed)
        batches = Batches.from_sizes(sizes)
        seconds = context_s(batches, [(accelerator, fit, self.kernel(case.heads, kv), phase)])
        if case.is_block:
            tokens = batches.batch_size * batches.new
            prices = RooflineModel(accelerator, calibration)
            block_s = self.price_block(case.weights, case.heads, prices, tokens)
            seconds = seconds + block_s + fit.module_s
        doubts = of_hardware(fit, accelerator, self.what)
        if fit.kind != "assumed":
            doubts += self.doubt(case, calibration)
        named = dict(zip(self.sizes, sizes, strict=True))
        quantities = named | {"context": named["isl"] + named["step"]}
        is_behind = (named["step"] > 0) & (phase == "prefill")
        return Estimate(seconds, fit, doubts, quantities, [(BEHIND, is_behind)])

    def fit(self, tables: Sequence[pd.DataFrame]) -> Entries:
        (rows,) = tables
        keys = self._read_words(rows)
        named = rows.assign(
            phase=rows["phase"].map(PHASES).mask(self._is_decode(keys, rows["isl"]), "decode"),
            is_module=rows["phase"].str.endswith("module"),
            kv=rows["kv_cache_dtype"].map(KV_FORMATS),
            weights=keys["gemm_type"],
            computes_fp8=keys[self.computed] == "fp8",
        )
        return fitting.fit_plan(self._plan, named, self._fit_entry)

    @property
    def _plan(self) -> fitting.FitPlan:
        return fitting.load_plan(type(self).__name__.lower())

    def _fit_entry(
        self, wanted: Wanted, rows: pd.DataFrame, given: dict[str, Any]
    ) -> dict[str, object]:
        accelerator, plan = fitting.accelerator_of(wanted.gpu), self._plan
        phase: Any = wanted.rows["phase"]
        kv, heads = str(wanted.rows["kv"]), list(self.sizes[3:])
        kernels, which = np.unique(rows[heads].to_numpy(int), axis=0, return_inverse=True)
        works = [self.kernel(row, kv) for row in kernels.tolist()]
        shapes = rows.groupby(heads[:3]).ngroup().to_numpy()
        batches = Batches.from_sizes(rows[list(self.sizes)].to_numpy(dtype=float).T, which.ravel())
        is_module = rows["is_module"].to_numpy(bool)
        beside_s = self._price_blocks(wanted, rows)

        def build(values: Values) -> AttentionFit:
            return AttentionFit.model_construct(kind="fitted", source="", **given | values)

        def predict(fit: AttentionFit, chosen: Bools) -> Floats:
            own = [(accelerator, fit, work, phase) for work in works]
            module_s = np.where(is_module[chosen], fit.module_s, 0.0)
            return context_s(fitting.take(batches, chosen), own) + beside_s[chosen] + module_s

        sets = [name for name in wanted.search if name != "module" or is_module.any()]
        start = {name: value for name, value in plan.begin(*sets).items() if name not in given}
        engine = f"{wanted.rows['engine']}, " if "engine" in wanted.rows else ""
        source = (
            f"{self.describe(rows, phase)} on {wanted.gpu.upper()} with a {kv} cache, "
            f"{shapes.max() + 1} {self.shapes}, {engine}{SOURCE}"
        )
        domain = {name: rows[name].to_numpy() for name in self.domain}
        domain["context"] = batches.new + batches.context
        search = Search(plan, rows["latency_ms"].to_numpy() / 1e3, build, predict, start)
        return search.entry(source, accelerator, shapes, domain, {*start, *given}, is_refined=True)

    def _price_blocks(self, wanted: Wanted, rows: pd.DataFrame) -> Floats:
        """Seconds ``[n]`` of what blocks multiply beside their kernels; 0 for kernels alone."""
        accelerator = fitting.accelerator_of(wanted.gpu)
        engine = str(wanted.rows.get("engine", ANY))
        calibration = load_calibration(accelerator.calibration, wanted.gpu).choose_engine(engine)
        prices, found_s = RooflineModel(accelerator, calibration), np.zeros(len(rows))
        tokens = (rows["batch_size"] * rows["isl"]).to_numpy()
        blocks = rows.loc[rows["is_module"], ["weights", *self.sizes[3:]]]
        for (weights, *heads), own in group_rows(blocks):
            places = blocks.index.to_numpy()[own]
            found_s[places] = self.price_block(weights, heads, prices, tokens[places])
        return found_s
