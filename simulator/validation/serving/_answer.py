"""Points of one plan, answered one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from simulator.engine.table import StepTable, make_table
from simulator.errors import UserError
from simulator.plan import Plan
from simulator.plugins import build
from simulator.price import Prices
from simulator.scores import DENSE, MOE
from simulator.spec.host import HostCalibration, load_any_calibration
from simulator.validation import OK
from simulator.validation.serving._deployments import Deployment, UnanswerableError, deployment_of, plan_of, table_key
from simulator.validation.serving._drafts import KEPT, drafts, with_drafts
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


class Prepared(NamedTuple):
    """A point, ready to be served."""

    point: Point
    """With fewer output tokens where drafts give several a step."""
    found: Deployment
    plan: Plan | str
    """Or why there is none."""
    table: StepTable | None
    tokens_per_step: float


def prepare(points: Sequence[Point]) -> Iterator[Prepared]:
    """Points that share a :func:`~simulator.validation.serving._deployments.table_key`, with the table that they share."""
    deployments = [deployment_of(point) for point in points]
    plan = plan_of(table_key(points[0]))
    if isinstance(plan, str):
        yield from (Prepared(point, found, plan, None, 1.0) for point, found in zip(points, deployments, strict=True))
        return
    plans = [_batched(plan, found) for found in deployments]
    longest = max(point.num_input + point.num_output for point in points)
    budget = max(one.rules.token_budget for one in plans)
    table = make_table(
        Prices(plan, budget if all(one.rules.splits_prompts for one in plans) else max(budget, longest)), plan.rng("steps")
    )
    for point, found, one in zip(points, deployments, plans, strict=True):
        engine = one.calibration.engine
        prompt_s = engine.prompt_s(one.model.num_layers, one.model.num_moe_layers)
        own = table._replace(step_s=engine.step_s, sequence_s=engine.sequence_s, prompt_s=prompt_s)
        if drafts(point, one.model):
            dp = one.layout.attention_dp
            shorter = point._replace(num_output=max(1, round(point.num_output / KEPT)))
            yield Prepared(shorter, found, one, with_drafts(own, -(-point.concurrency // dp), dp), KEPT)
        else:
            yield Prepared(point, found, one, own, 1.0)


def answer_points(points: Sequence[Point]) -> list[Answer]:
    """Answer points that share a table."""
    known: dict[object, Latencies | str] = {}
    return [_answer(one, known) for one in prepare(points)]


def _batched(plan: Plan, found: Deployment) -> Plan:
    """The plan with the batching and the engine version of a deployment that it is otherwise the plan of."""
    place = "serving point"
    calibration = load_any_calibration(plan.accelerator.calibration, place)
    if isinstance(calibration, HostCalibration):
        raise UnanswerableError("a machine's own calibration has no engines")
    rules = build("scheduling", found.spec.scheduling, place).rules()
    return replace(plan, spec=found.spec, rules=rules, calibration=calibration.on(found.spec.engine))


def _answer(one: Prepared, known: dict[object, Latencies | str]) -> Answer:
    point, found = one.point, one.found
    group = f"{point.system.lower().removesuffix('_sxm')} {point.engine} {MOE if found.model.moe else DENSE}"
    if isinstance(one.plan, str) or one.table is None:
        return Answer(_NAN, _NAN, f"unsupported: {one.plan}", group)
    load = (point.concurrency, point.num_input, point.num_output, point.is_ranged, found.spec.model_dump_json())
    if load not in known:
        try:
            known[load] = measure(one.plan, one.table, point)
        except UserError as error:
            known[load] = str(error)
    latencies = known[load]
    if isinstance(latencies, str):
        return Answer(_NAN, _NAN, f"unsupported: {latencies}", group)
    engine = one.plan.calibration.engine
    reasons = list(found.guesses)
    if engine.kind == "assumed":
        reasons.append(f"no serving points of {one.plan.accelerator.title} were fitted")
    status = f"extrapolated: {'; '.join(reasons)}" if reasons else OK
    return Answer(latencies.ttft_s, latencies.tpot_s / one.tokens_per_step, status, group, engine.ttft_band, engine.band)
