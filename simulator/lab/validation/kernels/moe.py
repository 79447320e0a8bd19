"""The routed experts of one layer on one rank: both products, the activation between them, sorting
and adding up.

Takes two kinds of tables: ``moe_perf`` tables, and those of SGLang's wide expert parallelism, which
have a column ``phase`` and whose engine runs DeepEP's layouts. In both ``num_tokens`` counts the
tokens of the whole group. Where a table holds a row twice, it timed two kernels of which an engine
takes one; both get the same prediction, the faster kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from simulator.lab.validation import Answers, Measure
from simulator.lab.validation.kernels import KernelFamily
from simulator.lab.validation.kernels import _answering as answering
from simulator.lab.validation.kernels import _experts as experts
from simulator.lab.validation.kernels._answering import Part
from simulator.lab.validation.kernels._experts import NOT_WHOLE, Layers, Sizes
from simulator.lab.validation.kernels._fitting import Tables
from simulator.lab.validation.kernels._power_law import Case, exponent, rank_rows

_SIZES = ("num_tokens", "num_experts", "topk", "moe_ep_size")
_NOTHING = Case(1, 1, 1, 1, None)
_LIMITED_ENGINES = ("sglang", "vllm")
_DEEPSEEK = (7168, 256, 8)
"""Hidden size, experts and experts a token of DeepSeek-V3, whose router keeps a token within 4 of 8
groups. TensorRT-LLM's benchmark routes without that limit, but for one format."""
_GROUPS = (8, 4)
"""Groups of DeepSeek-V3's experts, and how many of them a token may use."""
_GROUPED = ("trtllm", "nvfp4")
"""Engine and format of kernels that choose experts themselves: under balance they read at up to 11
TB/s of B200's 8, had they all experts to read, and less by what a router leaves out that keeps
tokens within half of eight groups."""
_FEW_EXPERTS = 8
"""Up to so many experts SGLang's kernel also computes the choices of other ranks' experts."""
_SLOWER = "0.5.6"
"""A release of SGLang whose experts behind DeepEP's layout for many tokens take half a millisecond
longer to start."""


class Moe(KernelFamily):
    """A rank's routed experts."""

    columns = (
        *("gpu", "engine", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts"),
        *("moe_tp_size", "moe_ep_size", "distribution", "num_tokens"),
    )
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "grouped_gemm"
    sources = ("moe_grouped_gemm.csv.gz", "moe_wide_ep_sglang.csv.gz")

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        return experts.list_parts(table, _kernels_of(table), *_layers_of(table))

    def answer(self, table: pd.DataFrame) -> Answers:
        answers = super().answer(table)
        versions = [name for name in ("engine_ver", "phase", "is_gated") if name in table.columns]
        for place in np.flatnonzero(table.duplicated([*self.columns, *versions], keep=False)):
            answers.group[place] += ", by two kernels"
        return answers

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        table = pd.concat(tables, ignore_index=True)
        table["phase"] = table["phase"].fillna("")
        # Of rows that were timed twice, with two kernels, the faster one is fitted, since engines
        # choose; both count as errors.
        twice = table.groupby([*self.columns, "phase", "engine_ver"], dropna=False)["latency_ms"]
        table["is_fitted"] = table.index.isin(twice.idxmin())
        table["is_generic"] = table["phase"] == ""
        return experts.fit_entries(table, _layers_of(table)[0], _kernels_of(table))


def _kernels_of(table: pd.DataFrame) -> list[str]:
    """The calibration's name for the engine of each row: SGLang runs other kernels behind DeepEP,
    one for each phase.
    """
    names = answering.words(table, "engine", phase="", engine_ver="")
    return [_kernels(*row) for row in names.itertuples(index=False)]


def _kernels(engine: str, phase: str, version: str) -> str:
    if not phase.startswith("wideep"):
        return engine
    if "generation" in phase:
        return f"{engine}-deepep-decode"
    return (
        f"{engine}-{_SLOWER}-deepep-prefill"
        if version.startswith(_SLOWER)
        else f"{engine}-deepep-prefill"
    )


def _layers_of(table: pd.DataFrame) -> tuple[Layers, list[str]]:
    """Layers of a table's rows, and for each why it has none, or nothing."""
    sizes, engines = Sizes.read(table, _SIZES), _kernels_of(table)
    own, dtypes = sizes.by_name, table["moe_dtype"].map(str)
    keys = sizes.keys((*_SIZES, "hidden_size")).assign(
        engine=engines,
        distribution=table["distribution"].map(str).to_numpy(),
        is_grouped=[pair == _GROUPED for pair in zip(engines, dtypes, strict=True)],
    )
    codes, found = pd.factorize(pd.MultiIndex.from_frame(keys))
    cases = [_case(*key) for key in found]
    load = experts.load_of(codes, [rank_rows(case) for case, _ in cases])
    # DeepEP's layout for few tokens brings a rank the rows of its experts only; elsewhere its
    # kernels see whole tokens.
    sees_rows = np.array([engine.endswith("-decode") for engine in engines], dtype=bool)[:, None]
    pairs = (own["num_tokens"] * own["topk"])[:, None]
    choices = np.where(sees_rows, load.rows, np.maximum(load.rows, pairs))
    reasons = [why or cases[code][1] for why, code in zip(sizes.wrong, codes, strict=True)]
    return sizes.layers(load, choices), reasons


def _case(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    num_ranks: int,
    hidden: int,
    engine: str,
    distribution: str,
    is_grouped: bool,
) -> tuple[Case, str]:
    """Case of a table's row; any, and the reason, where it has none."""
    if num_tokens < 1:
        return _NOTHING, NOT_WHOLE
    if num_ranks > num_experts or top_k > num_experts:
        return _NOTHING, f"{num_experts} experts on {num_ranks} ranks, {top_k} a token"
    alpha, reason = exponent(distribution)
    if reason:
        return _NOTHING, reason
    is_limited = engine in _LIMITED_ENGINES and (hidden, num_experts, top_k) == _DEEPSEEK
    num_groups, num_kept = _GROUPS
    has_groups = num_experts % num_groups == 0 and top_k <= num_experts // num_groups * num_kept
    is_limited |= is_grouped and alpha is None and has_groups
    case = Case(
        *(num_tokens, num_experts, top_k, num_ranks, alpha),
        groups=_GROUPS if is_limited else None,
        keeps_remote=engine == "sglang" and num_experts <= _FEW_EXPERTS,
        in_blocks=engine.endswith("-prefill"),
    )
    return case, ""
