"""The routed experts of the busiest rank, with and without EPLB's copies of hot experts
(TensorRT-LLM's wide expert parallelism); fits its entries of the table ``grouped_gemm``.

``distribution`` ends in ``_eplb`` where experts were placed by the policy ``eplb`` on ``num_slots``
slots, for the very loads that were then timed. ``rank0_num_tokens``, where a table has it, says how
many tokens reached the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.arrays import Floats
from simulator.lab.validation.kernels import words
from simulator.lab.validation.kernels._experts import SHAPES, ExpertFamily, Sizes
from simulator.lab.validation.kernels._power_law import Case, expert_tokens
from simulator.lab.validation.sizes import LARGEST, numbers
from simulator.policies.placement import eplb as placement
from simulator.policies.placement.contiguous import Contiguous
from simulator.work.slots import SlotMap

_ENGINE, _KERNELS = "trtllm", "-wide-ep"
"""Engine of the table's kernels where it does not say, and the calibration's suffix for them: they
differ from those of ``moe``."""
_COPIES = "_eplb"
_ARRIVED = "rank0_num_tokens"


class Eplb(ExpertFamily):
    """A rank's routed experts after rebalancing."""

    sizes = (*ExpertFamily.sizes, "num_slots")
    columns = ("gpu", "moe_dtype", "distribution", *sizes, *SHAPES)
    sources = ("moe_eplb_trtllm.csv.gz",)
    suffix = _COPIES

    def prepare(self, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        (table,) = tables
        model = table["hidden_size"].astype(str) + "x" + table["num_experts"].astype(str)
        return table.assign(engine=_ENGINE, model=model, is_fitted=True, is_generic=False)

    def read(self, table: pd.DataFrame, sizes: Sizes) -> tuple[list[str], pd.DataFrame, Floats]:
        kernels = [f"{engine}{_KERNELS}" for engine in words(table, engine=_ENGINE)["engine"]]
        has_copies = table["distribution"].map(str).str.endswith(_COPIES).to_numpy(bool)
        tokens = sizes.by_name["num_tokens"]
        if _ARRIVED in table.columns:
            arrived = numbers(table, (_ARRIVED,))[_ARRIVED]
            tokens = np.where((arrived >= 0) & (arrived <= LARGEST), arrived, tokens)
        return kernels, sizes.keys(("num_slots",)) * has_copies[:, None], tokens

    def draw(self, case: Case, *conditions: Any) -> Floats:
        return _rows(case, *conditions)


@cache
def _rows(case: Case, num_slots: int) -> Floats:
    """Rows of every slot of the busiest rank, ``[D, G]``; without copies where ``num_slots`` is
    0.
    """
    tokens_DE = expert_tokens(case.num_tokens, case.num_experts, case.top_k, case.alpha)
    policy = placement.Eplb(num_slots=num_slots) if num_slots else Contiguous()
    placed = policy.place(tokens_DE, case.num_ranks, np.random.default_rng(0))
    found = []
    for draw, tokens_E in enumerate(tokens_DE):
        rows_RG = SlotMap(placed, draw, case.num_experts).share_tokens(tokens_E)
        found.append(rows_RG[rows_RG.sum(axis=1).argmax()])
    return np.stack(found)
