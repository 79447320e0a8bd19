"""Points of one plan, answered one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from simulator.base.data import cache_lookups
from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.config.calibration.engine import DisaggregationFit, parse_release
from simulator.config.deployment import DeploymentSpec
from simulator.config.engine import find_kv_transfer, resolve_scheduling
from simulator.deployment.fits import find_bands
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.table import StepTable, change_engine, make_table
from simulator.lab.results.scores import DENSE, MOE
from simulator.lab.validation import OK
from simulator.lab.validation.hardware import load_family
from simulator.lab.validation.serving.campaigns import DEFAULT
from simulator.lab.validation.serving.deployments import (
    Deployment,
    Novelty,
    accelerator_of,
    deployment_of,
    doubts_of_drafts,
    has_drafts,
    is_tight,
    novelty_of,
    plan_of,
    table_key,
)
from simulator.lab.validation.serving.disagg import (
    Decodes,
    Half,
    Load,
    Pools,
    assumed_pool,
    decodes_of,
    doubts_of_pools,
    is_behind_exchange,
    latencies,
    most_decode_tokens,
    prompts_of,
    transfer_s,
    with_enough_workers,
)
from simulator.lab.validation.serving.load import Latencies, measure
from simulator.lab.validation.serving.points import Point, Pool
from simulator.lab.validation.serving.prefill_loop import Prompts
from simulator.step.prices import Prices

_DEEPEP = {"dispatch": {"kind": "deepep_auto"}}


class Answer(NamedTuple):
    """Reply to one point; times are means in seconds."""

    ttft_s: float
    tpot_s: float
    status: str
    group: str
    ttft_band: tuple[float, float] | None = None
    """Factors on predictions at the ends of their 80 % band; ``None`` where nothing was
    measured."""
    tpot_band: tuple[float, float] | None = None
    widens: bool = True
    """Whether bands widen where the status says extrapolated; not where they are of such points."""

    @classmethod
    def refuse(cls, why: object, group: str) -> Answer:
        """No answer, and why."""
        return cls(float("nan"), float("nan"), f"unsupported: {why}", group)


class Prepared(NamedTuple):
    """A point, ready to be served."""

    point: Point
    found: Deployment
    plan: DeploymentPlan
    table: StepTable


def prepare(points: Sequence[Point]) -> Iterator[Prepared]:
    """Points that share a :func:`~simulator.lab.validation.serving.deployments.table_key`, with the
    table that they share.

    Raises:
        UserError: if there is no plan of them.
    """
    found = [deployment_of(point) for point in points]
    plan = plan_of(table_key(points[0]))
    if is_tight(plan):
        guess = "its weights leave less room than the engine holds back"
        found = [one._replace(guesses=(*one.guesses, guess)) for one in found]
    plans = [_change_batching(plan, one) for one in found]
    table = make_table(Prices(plan.placement, max(map(_most_tokens, points, plans))))
    for point, one, own in zip(points, found, plans, strict=True):
        yield Prepared(point, one, own, change_engine(table, own.placement))


def _most_tokens(point: Point, plan: DeploymentPlan) -> int:
    """Largest number of tokens of one step of a data-parallel rank."""
    rules = plan.serving.rules
    longest = point.num_input + point.num_output + plan.placement.drafts.num_tokens
    return rules.token_budget if rules.splits_prompts else max(rules.token_budget, longest)


def _alone(point: Point, pool: Pool) -> Point:
    """One worker of a pool as a deployment, whatever the load."""
    version = (
        "" if point.engine == "trtllm" and parse_release(point.version) < (1,) else point.version
    )  # of Dynamo, not of the engine
    return point._replace(
        decode=pool._replace(workers=1, batch=None),
        prefill=None,
        campaign=DEFAULT,
        is_drafted=False,
        says_workers=False,
        shortest=1.0,
        num_output=1,
        concurrency=1,
        version=version,
    )


def half_of(alone: Point) -> Half:
    """One pool of a disaggregated point.

    Raises:
        UserError: if it cannot be priced.
    """
    found, key = deployment_of(alone), table_key(alone)
    if found.model.moe is not None and is_behind_exchange(alone):
        found = found._replace(spec=found.spec.model_copy(update=_DEEPEP))
        key = DeploymentSpec.model_validate_json(key).model_copy(update=_DEEPEP).model_dump_json()
    own = _change_batching(plan_of(key), found)
    most_tokens = max(_most_tokens(alone, own), most_decode_tokens(own))
    table = change_engine(_table_of(key, most_tokens), own.placement)
    return Half(own, table, alone.decode)


@lru_cache(maxsize=64)
def _prompts(alone: Point, num_input: int) -> tuple[Prompts, float, DeploymentPlan]:
    half = half_of(alone)
    return prompts_of(half, num_input), transfer_s(half, num_input), half.plan


@lru_cache(maxsize=64)
def _decodes(alone: Point, num_input: int, num_output: int) -> tuple[Decodes, DeploymentPlan]:
    half = half_of(alone)
    return decodes_of(half, num_input, num_output), half.plan


@lru_cache(maxsize=8)
def _table_of(key: str, most_tokens: int) -> StepTable:
    return make_table(Prices(plan_of(key).placement, most_tokens))


@cache_lookups()
def answer_points(points: Sequence[Point]) -> list[Answer]:
    """Answer points that share a table."""
    known: dict[object, Latencies | UserError] = {}
    whole = [point for point in points if point.prefill is None]
    try:
        answers = {one.point: _answer(one, known) for one in prepare(whole)} if whole else {}
    except UserError as error:
        answers = {one: Answer.refuse(error, _group(one, deployment_of(one))) for one in whole}
    return [
        answers[point] if point.prefill is None else _answer_pools(point, point.prefill)
        for point in points
    ]


def open_pools(point: Point, prefill: Pool, unsaid_workers: int) -> tuple[Pools, DeploymentPlan]:
    """Pools of a disaggregated point, ready to be loaded, and the second one's plan.

    Args:
        unsaid_workers: decode workers where the table does not say.

    Raises:
        UserError: if there are none such.
    """
    load, model = Load.from_point(point), deployment_of(point).model
    pool = (
        point.decode
        if point.says_workers or model.moe is None
        else assumed_pool(point, unsaid_workers)
    )
    # Nothing decodes where prompts are computed, so nothing is drafted there.
    alone = _alone(point._replace(drafted=0), prefill)
    prompts, moves_s, first_plan = _prompts(alone, load.num_input)
    decodes, plan = _decodes(_alone(point, pool), load.num_input, load.num_output)
    workers = prefill.workers if point.says_workers else None
    may_draft = workers is None and point.drafted is None and has_drafts(model)
    hand_over = find_kv_transfer(first_plan.spec.engine)
    own_s = first_plan.placement.calibration.engine.first_token_s + hand_over.handshake_s
    steps = 2.0 if hand_over.recomputes_last else 1.0
    decodes = decodes._replace(ranks=decodes.ranks * pool.workers)
    return Pools(prompts, decodes, workers, moves_s, own_s, steps, may_draft), plan


def _answer_pools(point: Point, prefill: Pool) -> Answer:
    found = deployment_of(point)
    group, fit = _group(point, found), _pools_fit(point)
    if fit is None:
        why = f"nothing is known of pools of prefill and decode on {point.system}"
        return Answer.refuse(why, group)
    try:
        pools = open_pools(point, prefill, fit.unsaid_workers)
    except UserError as error:
        return Answer.refuse(error, group)
    load = Load.from_point(point)
    seconds = latencies(pools[0], load, fit.unsaid_drafts)
    bands = (fit.ttft_band, fit.band)
    if not point.says_workers:
        low, high = fit.unsaid_ttft_band
        fewer_s = with_enough_workers(pools[0], load, fit.unsaid_drafts)
        bands = (
            (low * min(1.0, fewer_s / seconds.ttft_s) if fewer_s else low, high),
            fit.unsaid_band,
        )
    doubts, widens = doubts_of_pools(point, pools[1], fit)
    guessed = found._replace(guesses=(*found.guesses, *doubts))
    status, _ = _status(guessed, point, Novelty())
    return Answer(*seconds, status, group, *bands, widens=widens)


def _pools_fit(point: Point) -> DisaggregationFit | None:
    calibration = load_family(accelerator_of(point).calibration)
    return None if calibration is None else calibration.pools(point.engine)


def _change_batching(plan: DeploymentPlan, found: Deployment) -> DeploymentPlan:
    """The plan with the batching and the engine version of a deployment that it is otherwise the
    plan of.
    """
    placement, place = plan.placement, "serving point"
    calibration = load_family(placement.accelerator.calibration)
    if calibration is None:
        raise UserError("a machine's own calibration has no engines")
    spec, dp = found.spec, placement.layout.attention_dp
    scheduling = resolve_scheduling(
        spec.scheduling,
        spec.engine,
        placement.accelerator,
        dp,
        spec.usage,
        spec.speculation["kind"],
    )
    rules = build("scheduling", scheduling, place).rules()
    own = replace(
        placement, overlap=spec.overlap, calibration=calibration.choose_engine(spec.engine)
    )
    return DeploymentPlan(spec, own, replace(plan.serving, rules=rules))


def _answer(one: Prepared, known: dict[object, Latencies | UserError]) -> Answer:
    point, found = one.point, one.found
    group = _group(point, found)
    load = (
        point.concurrency,
        point.num_input,
        point.num_output,
        point.shortest,
        point.campaign,
        found.spec.model_dump_json(),
    )
    if load not in known:
        try:
            known[load] = measure(one.plan, one.table, point)
        except UserError as error:
            known[load] = error
    seconds = known[load]
    if isinstance(seconds, UserError):
        return Answer.refuse(seconds, group)
    engine, new = one.plan.placement.calibration.engine, novelty_of(point, one.plan)
    status, widens = _status(found, point, new)
    bands = find_bands(engine, new.unseen)
    return Answer(
        *seconds, status, group, bands.ttft_band, bands.band, widens and bool(engine.band)
    )


def _status(found: Deployment, point: Point, new: Novelty) -> tuple[str, bool]:
    """The status, and whether bands are wider for it than for what is unseen."""
    guesses = (*found.guesses, *doubts_of_drafts(point, found.model))
    reasons = (*guesses, *new.reasons)
    return (f"extrapolated: {'; '.join(reasons)}" if reasons else OK), bool(guesses or new.wider)


def _group(point: Point, found: Deployment) -> str:
    kind = MOE if found.model.moe else DENSE
    return f"{point.system.lower().removesuffix('_sxm')} {point.engine} {kind}"
