"""The routed experts of the busiest rank, with and without EPLB's copies of hot experts
(TensorRT-LLM's wide expert parallelism); fits its entries of the table ``grouped_gemm``.

``distribution`` ends in ``_eplb`` where experts were placed by the policy ``eplb`` on ``num_slots``
slots, for the very loads that were then timed. ``rank0_num_tokens``, where a table has it, says how
many tokens reached the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.lab.validation import Measure
from simulator.lab.validation.kernels import KernelFamily
from simulator.lab.validation.kernels import _answering as answering
from simulator.lab.validation.kernels import _experts as experts
from simulator.lab.validation.kernels._answering import Part
from simulator.lab.validation.kernels._experts import NOT_WHOLE, SHAPES, Layers, Sizes
from simulator.lab.validation.kernels._fitting import Floats, Tables
from simulator.lab.validation.kernels._power_law import expert_tokens, exponent
from simulator.lab.validation.sizes import LARGEST, numbers
from simulator.policies.placement import eplb as placement
from simulator.policies.placement.contiguous import Contiguous
from simulator.work.slots import SlotMap

_ENGINE, _KERNELS = "trtllm", "-wide-ep"
"""Engine of the table's kernels where it does not say, and the calibration's suffix for them: they
differ from those of ``moe``."""
_COPIES = "_eplb"
_SIZES = ("num_tokens", "num_experts", "topk", "moe_ep_size", "num_slots")
_ARRIVED = "rank0_num_tokens"


class Eplb(KernelFamily):
    """A rank's routed experts after rebalancing."""

    columns = ("gpu", "moe_dtype", "distribution", *_SIZES, *SHAPES)
    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "grouped_gemm"
    sources = ("moe_eplb_trtllm.csv.gz",)

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        return experts.list_parts(table, _kernels_of(table), *_layers_of(table))

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        (table,) = tables
        model = table["hidden_size"].astype(str) + "x" + table["num_experts"].astype(str)
        table = table.assign(engine=_ENGINE, model=model, is_fitted=True, is_generic=False)
        return experts.fit_entries(table, _layers_of(table)[0], _kernels_of(table))


def _kernels_of(table: pd.DataFrame) -> list[str]:
    """The calibration's name for the engine of each row."""
    return [f"{engine}{_KERNELS}" for engine in answering.words(table, engine=_ENGINE)["engine"]]


def _layers_of(table: pd.DataFrame) -> tuple[Layers, list[str]]:
    """Layers of a table's rows, and for each why it has none, or nothing."""
    sizes = Sizes.read(table, _SIZES)
    own = sizes.by_name
    keys = sizes.keys(_SIZES).assign(distribution=table["distribution"].map(str).to_numpy())
    codes, found = pd.factorize(pd.MultiIndex.from_frame(keys))
    cases = [_case(*key) for key in found]
    load = experts.load_of(codes, [rows_DG for rows_DG, _ in cases])
    arrived = np.full(len(table), np.nan)
    if _ARRIVED in table.columns:
        arrived = numbers(table, (_ARRIVED,))[_ARRIVED]
    arrived = np.where((arrived >= 0) & (arrived <= LARGEST), arrived, own["num_tokens"])
    choices = np.maximum(load.rows, (arrived * own["topk"])[:, None])
    reasons = [why or cases[code][1] for why, code in zip(sizes.wrong, codes, strict=True)]
    return sizes.layers(load, choices), reasons


def _case(
    num_tokens: int, num_experts: int, top_k: int, num_ranks: int, num_slots: int, distribution: str
) -> tuple[Floats, str]:
    """Rows of every slot of the busiest rank, ``[D, G]``; none and the reason, where there is
    nothing to draw from.
    """
    nothing = np.ones((1, 1))
    if num_tokens < 1:
        return nothing, NOT_WHOLE
    alpha, reason = exponent(distribution.removesuffix(_COPIES))
    if reason:
        return nothing, reason
    if num_ranks > num_experts or top_k > num_experts:
        return nothing, f"{num_experts} experts on {num_ranks} ranks, {top_k} a token"
    slots = num_slots if distribution.endswith(_COPIES) else None
    try:
        return _rows(num_tokens, num_experts, top_k, num_ranks, slots, alpha), ""
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
) -> Floats:
    tokens_DE = expert_tokens(num_tokens, num_experts, top_k, alpha)
    policy = Contiguous() if num_slots is None else placement.Eplb(num_slots=num_slots)
    placed = policy.place(tokens_DE, num_ranks, np.random.default_rng(0))
    found = []
    for draw, tokens_E in enumerate(tokens_DE):
        rows_RG = SlotMap(placed, draw, num_experts).share_tokens(tokens_E)
        found.append(rows_RG[rows_RG.sum(axis=1).argmax()])
    return np.stack(found)
