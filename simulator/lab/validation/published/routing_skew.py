"""Imbalance of tokens over ranks and expert slots: the model's default routing through a
placement.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import ClassVar, Literal

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.errors import UserError
from simulator.config.model import load_model
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.lab.validation import OK
from simulator.lab.validation.hardware import cluster_of
from simulator.lab.validation.published import Reply
from simulator.lab.validation.published._rows import Case, Count, ModelName, RowTopic
from simulator.lab.validation.published._runs import make
from simulator.work.slots import SlotMap

_ACCELERATOR = "gb200"
"""Accelerator whose cluster holds the ranks; which one does not matter, since nothing is timed."""
_BAND = (10, 90)
"""Percentiles over the layers that the band ends at: one text differs from another as one layer
from another (assumed)."""


class _Row(Case):
    model: ModelName
    ep: Count
    slots: Count
    """Expert slots of all ranks."""
    by: Literal["rank", "slot"]


class RoutingSkew(RowTopic):
    """``model, ep, slots, by``: (max - mean) / mean of token-expert pairs, by rank or by expert
    slot.
    """

    row: ClassVar[type[Case]] = _Row
    title: ClassVar[str] = "routing skew"

    def plan_key(self, case: _Row) -> Hashable:
        return case.model

    def predict(self, case: _Row) -> Reply:
        of_layers = _imbalances(case.model, case.ep, case.slots)[case.by]
        low, high = np.percentile(of_layers, _BAND)
        value = float(of_layers.mean())
        because = f"{case.slots} slots on {case.ep} ranks"
        return Reply(value, min(value, float(low)), max(value, float(high)), OK, because)


@cache
def _imbalances(model: str, ep: int, num_slots: int) -> dict[str, Floats]:
    """``(max - mean) / mean`` of every layer, by rank and by slot, ``[L]`` each."""
    moe = load_model(model, model).moe
    if moe is None:
        raise UserError(f"{model} has no experts")
    redundant = num_slots - moe.num_experts
    if redundant < 0:
        raise UserError(f"{num_slots} slots are fewer than the experts of {model}")
    if num_slots % ep and redundant:
        raise UserError(f"{num_slots} slots do not spread evenly over {ep} ranks")
    placement = {"kind": "eplb", "num_slots": num_slots} if redundant else {"kind": "contiguous"}
    plan = make(
        {
            "model": model,
            "cluster": cluster_of(_ACCELERATOR, ep),
            "parallel": {"attention_dp": ep, "ep": ep},
            "placement": placement,
        }
    )
    experts = plan.placement.experts
    assert experts is not None, "it has routed experts"
    by_rank, by_slot = [], []
    for layer, topk_ids_TK in enumerate(experts.topk_ids_LTK):
        slots = SlotMap(experts.placed, layer, moe.num_experts)
        rows_RG = slots.rows(slots.slots(topk_ids_TK[:POOL_TOKENS]), 1.0)
        by_rank.append(rows_RG.sum(axis=1).max() / rows_RG.sum(axis=1).mean() - 1.0)
        by_slot.append(rows_RG.max() * num_slots / rows_RG.sum() - 1.0)
    return {"rank": np.array(by_rank), "slot": np.array(by_slot)}
