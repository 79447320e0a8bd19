"""The routed experts of one layer on one rank: both products, the activation between them, sorting
and adding up.

Takes two kinds of tables: ``moe_perf`` tables, and those of SGLang's wide expert parallelism, which
have a column ``phase`` and whose engine runs DeepEP's layouts. In both ``num_tokens`` counts the
tokens of the whole group. Where a table holds a row twice, it timed two kernels of which an engine
takes one; both get the same prediction, the faster kernel's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.arrays import Floats
from simulator.lab.validation import Answers
from simulator.lab.validation.kernels import words
from simulator.lab.validation.kernels._experts import ExpertFamily, Sizes
from simulator.lab.validation.kernels._power_law import Case, rank_rows

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


class Moe(ExpertFamily):
    """A rank's routed experts."""

    columns = (
        *("gpu", "engine", "moe_dtype", "hidden_size", "inter_size", "topk", "num_experts"),
        *("moe_tp_size", "moe_ep_size", "distribution", "num_tokens"),
    )
    sources = ("moe_grouped_gemm.csv.gz", "moe_wide_ep_sglang.csv.gz")

    def answer(self, table: pd.DataFrame) -> Answers:
        answers = super().answer(table)
        versions = [name for name in ("engine_ver", "phase", "is_gated") if name in table.columns]
        for place in np.flatnonzero(table.duplicated([*self.columns, *versions], keep=False)):
            answers.group[place] += ", by two kernels"
        return answers

    def prepare(self, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        table = pd.concat(tables, ignore_index=True)
        table["phase"] = table["phase"].fillna("")
        # Of rows that were timed twice, with two kernels, the faster one is fitted, since engines
        # choose; both count as errors.
        twice = table.groupby([*self.columns, "phase", "engine_ver"], dropna=False)["latency_ms"]
        return table.assign(
            is_fitted=table.index.isin(twice.idxmin()), is_generic=table["phase"] == ""
        )

    def read(self, table: pd.DataFrame, sizes: Sizes) -> tuple[list[str], pd.DataFrame, Floats]:
        names = words(table, "engine", phase="", engine_ver="")
        kernels = [_kernels(*row) for row in names.itertuples(index=False)]
        pairs = zip(kernels, table["moe_dtype"].map(str), strict=True)
        is_grouped = [pair == _GROUPED for pair in pairs]
        conditions = sizes.keys(("hidden_size",)).assign(engine=kernels, is_grouped=is_grouped)
        # DeepEP's layout for few tokens brings a rank the rows of its experts only; elsewhere its
        # kernels see whole tokens.
        sees_rows = [engine.endswith("-decode") for engine in kernels]
        return kernels, conditions, np.where(sees_rows, 0.0, sizes.by_name["num_tokens"])

    def draw(self, case: Case, *conditions: Any) -> Floats:
        hidden, engine, is_grouped = conditions
        num_experts, top_k, (num_groups, num_kept) = case.num_experts, case.top_k, _GROUPS
        is_limited = engine in _LIMITED_ENGINES and (hidden, num_experts, top_k) == _DEEPSEEK
        has_groups = num_experts % num_groups == 0 and top_k <= num_experts // num_groups * num_kept
        is_limited |= is_grouped and case.alpha is None and has_groups
        case = case._replace(
            groups=_GROUPS if is_limited else None,
            keeps_remote=engine == "sglang" and num_experts <= _FEW_EXPERTS,
            in_blocks=engine.endswith("-prefill"),
        )
        return rank_rows(case)


def _kernels(engine: str, phase: str, version: str) -> str:
    """The calibration's name for the engine of a row: SGLang runs other kernels behind DeepEP, one
    for each phase.
    """
    if not phase.startswith("wideep"):
        return engine
    if "generation" in phase:
        return f"{engine}-deepep-decode"
    return (
        f"{engine}-{_SLOWER}-deepep-prefill"
        if version.startswith(_SLOWER)
        else f"{engine}-deepep-prefill"
    )
