"""Points of one plan, answered one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from simulator.engine.table import StepTable, make_table
from simulator.errors import UserError
from simulator.plan import Plan
from simulator.plugins import build
from simulator.price import Prices
from simulator.scores import DENSE, MOE
from simulator.spec.calibration.engine import release_of
from simulator.spec.host import HostCalibration, load_any_calibration
from simulator.validation import OK
from simulator.validation.serving._deployments import Deployment, UnanswerableError, deployment_of, is_tight, plan_of, table_key
from simulator.validation.serving._disagg import TPOT_BAND, TTFT_BAND, Half, assumed_pool, measure_pools
from simulator.validation.serving._drafts import KEPT, drafts, with_drafts
from simulator.validation.serving._load import Latencies, measure
from simulator.validation.serving._points import Point, Pool

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
    widens: bool = True
    """Whether bands widen where the status says extrapolated; not where they are of such points."""


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
    found = [deployment_of(point) for point in points]
    plan = plan_of(table_key(points[0]))
    if isinstance(plan, Plan) and is_tight(plan):
        found = [one._replace(guesses=(*one.guesses, "its weights leave less room than the engine holds back")) for one in found]
    if isinstance(plan, str):
        yield from (Prepared(point, one, plan, None, 1.0) for point, one in zip(points, found, strict=True))
        return
    plans = [_batched(plan, one) for one in found]
    table = make_table(Prices(plan, max(map(_most_tokens, points, plans))), plan.rng("steps"))
    for point, one, own in zip(points, found, plans, strict=True):
        priced = _with_engine(table, own)
        if drafts(point, own.model):
            dp = own.layout.attention_dp
            shorter = point._replace(num_output=max(1, round(point.num_output / KEPT)))
            yield Prepared(shorter, one, own, with_drafts(priced, -(-point.concurrency // dp), dp), KEPT)
        else:
            yield Prepared(point, one, own, priced, 1.0)


def _most_tokens(point: Point, plan: Plan) -> int:
    """Of one step of a data-parallel rank."""
    rules = plan.rules
    return rules.token_budget if rules.splits_prompts else max(rules.token_budget, point.num_input + point.num_output)


def _with_engine(table: StepTable, plan: Plan) -> StepTable:
    engine, model = plan.calibration.engine, plan.model
    prompt_s = engine.prompt_s(model.num_layers, model.num_moe_layers)
    return table._replace(step_s=engine.step_s, sequence_s=engine.sequence_s, prompt_s=prompt_s)


def half_of(point: Point, pool: Pool) -> Half | str:
    """One pool of a disaggregated point, or why it cannot be priced."""
    version = "" if point.engine == "trtllm" and release_of(point.version) < (1,) else point.version  # of Dynamo, not of the engine
    alone = point._replace(decode=pool, prefill=None, is_ranged=False, concurrency=1, version=version)
    plan = plan_of(table_key(alone))
    if isinstance(plan, str):
        return plan
    own = _batched(plan, deployment_of(alone))
    return Half(own, _with_engine(_table_of(table_key(alone), _most_tokens(alone, own)), own), pool)


@lru_cache(maxsize=8)
def _table_of(key: str, most_tokens: int) -> StepTable:
    plan = plan_of(key)
    if isinstance(plan, str):
        raise UnanswerableError(plan)
    return make_table(Prices(plan, most_tokens), plan.rng("steps"))


def answer_points(points: Sequence[Point]) -> list[Answer]:
    """Answer points that share a table."""
    known: dict[object, Latencies | str] = {}
    whole = [point for point in points if point.prefill is None]
    answers = dict(zip(whole, (_answer(one, known) for one in prepare(whole)), strict=True)) if whole else {}
    return [answers[point] if point.prefill is None else _answer_pools(point, point.prefill) for point in points]


def _answer_pools(point: Point, prefill: Pool) -> Answer:
    found = deployment_of(point)
    group = _group(point, found)
    guessed = not point.says_workers and found.model.moe is not None
    first, second = half_of(point, prefill), half_of(point, assumed_pool(point) if guessed else point.decode)
    if isinstance(first, str) or isinstance(second, str):
        return Answer(_NAN, _NAN, f"unsupported: {first if isinstance(first, str) else second}", group)
    latencies = measure_pools(point, first, second)
    if not point.says_workers:
        found = found._replace(guesses=(*found.guesses, "the table does not say how many workers there are"))
    return Answer(latencies.ttft_s, latencies.tpot_s, _status(found, second.plan), group, TTFT_BAND, TPOT_BAND, widens=False)


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
    group = _group(point, found)
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
    tpot_s = latencies.tpot_s / one.tokens_per_step
    return Answer(latencies.ttft_s, tpot_s, _status(found, one.plan), group, engine.ttft_band, engine.band)


def _status(found: Deployment, plan: Plan) -> str:
    reasons = list(found.guesses)
    if plan.calibration.engine.kind == "assumed":
        reasons.append(f"no serving points of {plan.accelerator.title} were fitted")
    return f"extrapolated: {'; '.join(reasons)}" if reasons else OK


def _group(point: Point, found: Deployment) -> str:
    return f"{point.system.lower().removesuffix('_sxm')} {point.engine} {MOE if found.model.moe else DENSE}"
