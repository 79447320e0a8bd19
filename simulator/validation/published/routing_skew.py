"""How unevenly tokens fall on ranks and on expert slots: the model's default routing through a
placement.
"""

from __future__ import annotations

import re
from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.config.model import load_model
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.validation import OK
from simulator.validation.published import Reply
from simulator.validation.published._names import cluster_of, model_name
from simulator.validation.published._scores import figures
from simulator.validation.published._serve import make
from simulator.work.slots import SlotMap

_ACCELERATOR = "gb200"
"""Whose cluster holds the ranks; which one does not matter, since nothing is timed."""
_BAND = (10, 90)
"""Percentiles over the layers that the band ends at: one text differs from another as one layer
from another (assumed)."""


class _Case(NamedTuple):
    model: str
    ep: int
    slots: int
    """Expert slots of all ranks."""


class RoutingSkew(Frozen):
    """``model, metric, value, conditions``: (max - mean) / mean of token-expert pairs, by rank or
    by expert slot.
    """

    columns: ClassVar[tuple[str, ...]] = ("model", "metric", "value", "conditions")

    def replies(self, table: pd.DataFrame, tick: Progress) -> list[Reply]:
        found = []
        for done, (_, row) in enumerate(table.iterrows(), 1):
            try:
                found.append(_answer(str(row["model"]), str(row["metric"]).lower()))
            except UserError as error:
                found.append(Reply.unsupported(str(error)))
            tick("routing skew", done, len(table))
        return found

    def scores(self, table: pd.DataFrame, replies: list[Reply]) -> pd.DataFrame:
        subjects = [
            f"{model} {metric}"
            for model, metric in zip(table["model"], table["metric"], strict=True)
        ]
        count = len(table)
        return figures(
            ["routing skew"] * count,
            subjects,
            ["imbalance"] * count,
            ["(max - mean) / mean"] * count,
            table["value"],
            replies,
        )


def _answer(model: str, metric: str) -> Reply:
    if "imbalance" not in metric:
        raise UserError("no imbalance of ranks or slots")
    if metric.startswith("layer"):
        raise UserError(
            "which layer is how uneven is drawn at random, so no single layer's "
            "imbalance is predicted"
        )
    name = model_name(model)
    moe = load_model(name, name).moe
    if moe is None:
        raise UserError(f"{name} has no experts")
    ep = re.search(r"\bep\s*(\d+)", metric)
    if ep is None:
        raise UserError("over how many ranks is not said")
    slots = re.search(r"(\d+) slots(?!/)", metric)
    per_rank = re.search(r"(\d+) slots/rank", metric)
    count = (
        int(slots[1]) if slots else int(per_rank[1]) * int(ep[1]) if per_rank else moe.num_experts
    )
    by_rank, by_slot = _imbalances(_Case(name, int(ep[1]), count))
    of_layers = (
        by_slot
        if "slot" in metric.rsplit(":", maxsplit=1)[-1] and "by rank" not in metric
        else by_rank
    )
    low, high = np.percentile(of_layers, _BAND)
    value = float(of_layers.mean())
    return Reply(
        value,
        min(value, float(low)),
        max(value, float(high)),
        OK,
        f"{count} slots on {ep[1]} ranks",
    )


@cache
def _imbalances(case: _Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(max - mean) / mean`` of every layer, by rank and by slot, ``[L]`` each."""
    moe = load_model(case.model, case.model).moe
    redundant = case.slots - (moe.num_experts if moe else 0)
    if redundant < 0:
        raise UserError(f"{case.slots} slots are fewer than the experts of {case.model}")
    if case.slots % case.ep and redundant:
        raise UserError(f"{case.slots} slots do not spread evenly over {case.ep} ranks")
    plan = make(
        {
            "model": case.model,
            "cluster": cluster_of(_ACCELERATOR, case.ep),
            "parallel": {"attention_dp": case.ep, "ep": case.ep},
            "placement": {"kind": "eplb", "num_slots": case.slots}
            if redundant
            else {"kind": "contiguous"},
        }
    )
    if plan.placement.experts is None or moe is None:
        raise UserError(f"{case.model} has no experts")
    by_rank, by_slot = [], []
    for layer, topk_ids_TK in enumerate(plan.placement.experts.topk_ids_LTK):
        slots = SlotMap(plan.placement.experts.placed, layer, moe.num_experts)
        rows_RG = slots.rows(slots.slots(topk_ids_TK[:POOL_TOKENS]), 1.0)
        by_rank.append(rows_RG.sum(axis=1).max() / rows_RG.sum(axis=1).mean() - 1.0)
        by_slot.append(rows_RG.max() * case.slots / rows_RG.sum() - 1.0)
    return np.array(by_rank), np.array(by_slot)
