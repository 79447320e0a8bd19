"""Points of one plan, answered one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from simulator.engine.table import StepTable, make_table
from simulator.errors import UserError
from simulator.plan import Plan
from simulator.plugins import build
from simulator.price import Prices
from simulator.scores import DENSE, MOE
from simulator.validation import OK
from simulator.validation.serving._deployments import Deployment, deployment_of, plan_of, table_key
from simulator.validation.serving._load import Latencies, measure
from simulator.validation.serving._points import Point

_NAN = float("nan")


class Answer(NamedTuple):
    """What is said of one point."""

    ttft_s: float
    tpot_s: float
    status: str
    group: str
    ttft_band: tuple[float, float] | None = None
    """What predictions are multiplied with for their 80 % band; ``None`` where nothing was measured."""
    tpot_band: tuple[float, float] | None = None


def answer_points(points: Sequence[Point]) -> list[Answer]:
    """Answer points that share a :func:`~simulator.validation.serving._deployments.table_key`."""
    deployments = [deployment_of(point) for point in points]
    plan = plan_of(table_key(points[0]))
    if isinstance(plan, str):
        return [
            Answer(_NAN, _NAN, f"unsupported: {plan}", _group(point, found))
            for point, found in zip(points, deployments, strict=True)
        ]
    plans = [_batched(plan, found) for found in deployments]
    longest = max(point.num_input + point.num_output for point in points)
    budget = max(one.rules.token_budget for one in plans)
    table = make_table(
        Prices(plan, budget if all(one.rules.splits_prompts for one in plans) else max(budget, longest)), plan.rng("steps")
    )
    known: dict[object, Answer] = {}
    answers = []
    for point, found, one in zip(points, deployments, plans, strict=True):
        load = (point.concurrency, point.num_input, point.num_output, point.is_ranged, found.spec.model_dump_json())
        if load not in known:
            known[load] = _answer(point, found, one, table)
        answers.append(known[load])
    return answers


def _batched(plan: Plan, found: Deployment) -> Plan:
    """The plan with the batching and the engine version of a deployment that it is otherwise the plan of."""
    calibration = plan.calibration
    rules = build("scheduling", found.spec.scheduling, "serving point").rules()
    return replace(plan, spec=found.spec, rules=rules, calibration=calibration)


def _answer(point: Point, found: Deployment, plan: Plan, table: StepTable) -> Answer:
    try:
        latencies: Latencies = measure(plan, table, point)
    except UserError as error:
        return Answer(_NAN, _NAN, f"unsupported: {error}", _group(point, found))
    reasons = list(found.guesses)
    status = f"extrapolated: {'; '.join(reasons)}" if reasons else OK
    return Answer(latencies.ttft_s, latencies.tpot_s, status, _group(point, found))


def _group(point: Point, found: Deployment) -> str:
    return f"{point.system.lower().removesuffix('_sxm')} {point.engine} {MOE if found.model.moe else DENSE}"
