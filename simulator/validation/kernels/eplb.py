"""The routed experts of the busiest rank, with and without EPLB's copies of hot experts
(TensorRT-LLM's wide expert parallelism).

``distribution`` ends in ``_eplb`` where experts were placed by the policy ``eplb`` on ``num_slots``
slots, for the very loads that were then timed. ``rank0_num_tokens``, where a table has it, says how
many tokens reached the rank.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.policies.placement import eplb as placement
from simulator.policies.placement.contiguous import Contiguous
from simulator.validation import Answers, Measure, require
from simulator.validation.kernels._power_law import NUM_DRAWS, expert_tokens, exponent
from simulator.validation.routed import (
    DOMAIN,
    NOT_WHOLE,
    SHAPES,
    Layers,
    columns,
    loads,
    price,
    read_sizes,
)
from simulator.validation.sizes import LARGEST
from simulator.work.slots import SlotMap

_ENGINE, _KERNELS = "trtllm", "-wide-ep"
"""What runs the table's kernels where it does not say, and what the calibration calls them: they
differ from those of ``moe``."""
_COPIES = "_eplb"
_SIZES = ("num_tokens", "num_experts", "topk", "moe_ep_size", "num_slots")
_ARRIVED = "rank0_num_tokens"


class Eplb(Frozen):
    """A rank's routed experts after rebalancing."""

    columns: ClassVar[tuple[str, ...]] = ("gpu", "moe_dtype", "distribution", *_SIZES, *SHAPES)
    measures: ClassVar[tuple[Measure, ...]] = (Measure("kernel", "latency_ms", 1e-3),)

    def answer(self, table: pd.DataFrame) -> Answers:
        require(table, self.columns, "eplb table")
        layers, reasons = layers_of(table)
        return price(table, kernels_of(table), layers, reasons)


def kernels_of(table: pd.DataFrame) -> list[str]:
    """The calibration's name for the engine of each row."""
    engines = table["engine"].map(str) if "engine" in table.columns else [_ENGINE] * len(table)
    return [f"{engine}{_KERNELS}" for engine in engines]


def layers_of(table: pd.DataFrame) -> tuple[Layers, list[str]]:
    """The layers of a table's rows, and for each why it has none, or nothing."""
    sizes_5, shapes_3, wrong = read_sizes(table, _SIZES)
    is_whole = wrong == ""
    keys = pd.DataFrame(np.where(is_whole, sizes_5, 0.0).T)
    keys["distribution"] = table["distribution"].map(str).to_numpy()
    codes, found = pd.factorize(
        pd.Series(list(keys.itertuples(index=False, name=None)), dtype=object)
    )
    cases = [_case(*key) for key in found]
    load = loads(codes, [rows_DG for rows_DG, _ in cases], NUM_DRAWS)
    arrived = (
        columns(table, (_ARRIVED,))[0] if _ARRIVED in table.columns else np.full(len(table), np.nan)
    )
    arrived = np.where((arrived >= 0) & (arrived <= LARGEST), arrived, sizes_5[0])
    choices = np.maximum(load.rows, (arrived * sizes_5[2])[:, None])
    sizes = dict(zip(DOMAIN, (sizes_5[0], sizes_5[1], sizes_5[3]), strict=False))
    reasons = [why or cases[code][1] for why, code in zip(wrong, codes, strict=True)]
    return Layers.build(table, shapes_3, is_whole, choices, load, sizes), reasons


def _case(
    tokens: float, experts: float, topk: float, ranks: float, slots: float, distribution: str
) -> tuple[NDArray[np.float64], str]:
    """Rows of every slot of the busiest rank, ``[D, G]``; none and the reason, where there is
    nothing to draw from.
    """
    nothing = np.ones((1, 1))
    num_tokens, num_experts, top_k, num_ranks, num_slots = (
        int(size) for size in (tokens, experts, topk, ranks, slots)
    )
    if num_tokens < 1:
        return nothing, NOT_WHOLE
    alpha, reason = exponent(distribution.removesuffix(_COPIES))
    if reason:
        return nothing, reason
    if num_ranks > num_experts or top_k > num_experts:
        return nothing, f"{num_experts} experts on {num_ranks} ranks, {top_k} a token"
    try:
        return _rows(
            num_tokens,
            num_experts,
            top_k,
            num_ranks,
            num_slots if distribution.endswith(_COPIES) else None,
            alpha,
        ), ""
    except UserError as error:
        return nothing, str(error)


@cache
def _rows(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    num_ranks: int,
    num_slots: int | None,
    alpha: float | None,
) -> NDArray[np.float64]:
    tokens_DE = expert_tokens(num_tokens, num_experts, top_k, alpha)
    policy = Contiguous() if num_slots is None else placement.Eplb(num_slots=num_slots)
    placed = policy.place(tokens_DE, num_ranks, np.random.default_rng(0))
    found = []
    for draw, tokens_E in enumerate(tokens_DE):
        rows_RG = SlotMap(placed, draw, num_experts).shared(tokens_E)
        found.append(rows_RG[rows_RG.sum(axis=1).argmax()])
    return np.stack(found)
