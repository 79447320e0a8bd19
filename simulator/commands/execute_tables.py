"""The tables of an execution, made from what ranks hand back and what is predicted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.linear import Linear
from simulator.config.sparsity import Pruning, choose_dense, choose_experts
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import StepTimes
from simulator.results.executed import RANK_COLUMNS, SUMMARY_COLUMNS
from simulator.results.phases import STEP_PHASES
from simulator.results.tables import SPAN_COLUMNS

_LEAST_LEFT = 0.01
"""Share of the cores that ranks have at least, since they did go on."""


def combine_moments(plan: DeploymentPlan, shards: list[Any]) -> Any:
    """A step's time and its phases, from what every rank measured of it."""
    from simulator.runtime.timeline import combine

    layout = plan.placement.layout
    groups = (tuple(range(layout.num_ranks)),)
    return combine([shard.moments for shard in shards], groups)


def make_step_row(
    deployment: str, kind: str, source: str, step: Any, duration_s: float, phases: dict[str, float]
) -> dict[str, Any]:
    """A row of ``STEP_COLUMNS``."""
    found = {
        "deployment": deployment,
        "kind": kind,
        "source": source,
        "number": step.number,
        "tokens": step.num_tokens,
    }
    return (
        found | {"duration_s": duration_s} | {f"{phase}_s": phases[phase] for phase in STEP_PHASES}
    )


def make_rank_rows(
    deployment: str, kind: str, step: Any, shards: list[Any], members: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of ``RANK_COLUMNS``, one a rank and MoE layer.

    Args:
        members: number of each rank when all are there.
    """
    found = []
    for shard in shards:
        for layer, pairs in enumerate(shard.pairs_L):
            rows_R = shard.rows_LR[layer] if shard.rows_LR else []
            sent = sum(rows_R) - (rows_R[shard.rank] if rows_R else 0)
            values = (deployment, kind, step.number, members[shard.rank], layer, pairs, sent)
            found.append(dict(zip(RANK_COLUMNS, values, strict=True)))
    return found


def make_span_rows(
    deployment: str, phase: str, spans: list[tuple[int, str, int, float, float]]
) -> pd.DataFrame:
    """``SPAN_COLUMNS`` of one step."""
    columns = ("rank", "name", "layer", "start_s", "duration_s")
    table = pd.DataFrame(spans, columns=list(columns))
    return table.assign(deployment=deployment, phase=phase)[list(SPAN_COLUMNS)]


def make_predicted_span_rows(deployment: str, phase: str, times: StepTimes) -> pd.DataFrame:
    """``SPAN_COLUMNS`` of one step as it was predicted."""
    return make_span_rows(
        deployment,
        phase,
        [(s.rank, s.phase, s.layer, s.start_s, s.duration_s) for s in times.spans or []],
    )


class Timed(NamedTuple):
    """A measured step with its timeline."""

    number: int
    duration_s: float
    spans: list[tuple[int, str, int, float, float]]


def choose_median(steps: Sequence[Timed]) -> Timed:
    """The step at the median of their times, of two in the middle the shorter: an outlier is never
    it.
    """
    ordered = sorted(steps, key=lambda step: step.duration_s)
    return ordered[(len(ordered) - 1) // 2]


def largest_difference(
    plan: DeploymentPlan, shards: list[Any], wanted_TH: NDArray[np.float32]
) -> float:
    """Largest difference of a hidden value between the distributed run and the reference."""
    own = [shard.hidden_TH for shard in shards if shard.rank % plan.placement.layout.tp == 0]
    return float(np.abs(np.concatenate(own) - wanted_TH).max(initial=0.0))


def summarise(
    plan: DeploymentPlan,
    steps: pd.DataFrame,
    differences: dict[str, float],
    others: dict[str, float],
    calibrated_share: float,
) -> pd.DataFrame:
    """``SUMMARY_COLUMNS``, a row a kind of step.

    Args:
        differences: from the one-process reference, by kind.
        others: share of the cores that other programs took, by kind.
        calibrated_share: that they took while the machine was calibrated.
    """
    rows = []
    for kind in dict.fromkeys(steps["kind"]):
        own = steps[steps["kind"] == kind]
        seconds = {
            source: statistics.median(own["duration_s"][own["source"] == source])
            for source in ("measured", "predicted")
        }
        tokens, share = int(own["tokens"].iloc[0]), others.get(kind, float("nan"))
        total, active = _count_parameters(plan)
        values = (
            plan.name,
            kind,
            tokens / seconds["measured"],
            tokens / seconds["predicted"],
            seconds["measured"],
            seconds["predicted"],
            seconds["predicted"] / seconds["measured"] - 1,
            seconds["predicted"] / (seconds["measured"] * _share_left(share, calibrated_share)) - 1,
            share,
            calibrated_share,
            differences.get(kind, float("nan")),
            total,
            active,
        )
        rows.append(dict(zip(SUMMARY_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows)


def _count_parameters(plan: DeploymentPlan) -> tuple[int, int]:
    """Parameters and active ones, less those that pruning took."""
    model, pruning = plan.placement.model, plan.spec.pruning
    dense, experts = choose_dense(pruning), choose_experts(pruning)
    gone = gone_active = 0
    for _, name in model.layer_names:
        ffn = model.ffns.get(name)
        if ffn is not None and ffn.is_prunable and dense is not None:
            taken = _count_gone(dense, ffn.linears(model.hidden_size))
            gone, gone_active = gone + taken, gone_active + taken
        moe = None if ffn is None else ffn.experts
        if moe is not None and experts is not None:
            taken = _count_gone(experts, moe.expert_linears(model.hidden_size))
            gone, gone_active = gone + moe.num_experts * taken, gone_active + moe.top_k * taken
    return model.num_parameters - gone, model.num_active_parameters - gone_active


def _count_gone(pruning: Pruning, linears: Iterable[Linear]) -> int:
    """Weights that pruning takes out of matrices."""
    return sum(
        one.num_parameters - pruning.num_stored(one.out_features, one.in_features)
        for one in linears
    )


def _share_left(share: float, calibrated_share: float) -> float:
    """Cores that other programs left to the ranks, over those that they left while the machine was
    calibrated; 1 where either is unknown.
    """
    left = (1 - share) / (1 - calibrated_share) if calibrated_share < 1 else math.nan
    return min(1.0, max(left, _LEAST_LEFT)) if math.isfinite(left) else 1.0
