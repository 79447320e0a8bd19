"""Deployments of a scenario, prepared, served and written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from simulator.base.errors import UserError
from simulator.base.progress import Progress, count_part, show_nothing
from simulator.config.workload import SLO
from simulator.deployment.memory import check_requests
from simulator.deployment.own_policies import try_policies
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.engine.by_ranks import Fidelity
from simulator.engine.shards import ServedShard, Shard, merge_shards, serve_shard, split_replicas
from simulator.engine.timeline import make_record, run_plan
from simulator.parallel.workers import Workers
from simulator.planner.uncertainty.run_bands import FigureSamples, StepTables, draw_figures
from simulator.results.metrics import select_judged, summarise
from simulator.results.tables import DeploymentRecord
from simulator.scenario.scenario import Scenario
from simulator.workload.requests import load_requests, longest_tokens
from simulator.workload.traces import RequestTrace


def prepare_run(scenario: Scenario) -> tuple[list[DeploymentPlan], RequestTrace]:
    """Make the plans of all deployments, and load the requests that they serve.

    Raises:
        UserError: if anything that the scenario names is wrong or does not fit.
    """
    plans = [
        make_plan(deployment, scenario.seed, scenario.where, scenario.folder)
        for deployment in scenario.deployments
    ]
    place = f"{scenario.where} [workload]"
    trace = load_requests(scenario.workload, scenario.folder, scenario.seed, place)
    for pool in (pool for plan in plans for pool in plan.pools):
        try_policies(pool, trace)
        pool.check_prefixes(trace, f"{scenario.where} [deployments '{pool.name}']")
    for plan in plans:
        where = f"{scenario.where} [deployments '{plan.name}']"
        check_requests(
            plan.serving.capacity, longest_tokens(trace) + plan.placement.drafts.num_tokens, where
        )
        if plan.prefill is not None:
            longest = int(trace.num_input.max()) + 1
            check_requests(plan.prefill.serving.capacity, longest, f"{where} [prefill]")
    return plans, trace


_SHARD_REQUESTS = 1 << 15
"""Requests of a shard on average, at least: a third of a second or more, beside which filling its
tables and handing it on is little."""
_MOST_SHARDS = 16
"""Most shards of one deployment: their results, up to 40 MB each, are held until put together."""

_Task = Callable[..., Any]
"""Takes the keyword ``tick``."""


@dataclass(frozen=True)
class Question:
    """Requests and settings that all deployments share."""

    trace: RequestTrace
    fidelity: Fidelity
    slo: SLO
    seed: int
    where: str
    """The scenario's file, for errors."""


@dataclass(frozen=True)
class ServedDeployment:
    """Results of a deployment."""

    record: DeploymentRecord
    summary: pd.DataFrame
    drawn: FigureSamples


def serve_deployments(
    plans: Sequence[DeploymentPlan],
    question: Question,
    tick: Progress = show_nothing,
    workers: int | None = 1,
    address: str | None = None,
) -> list[ServedDeployment]:
    """Serve the same requests on every deployment.

    Args:
        workers: processes, with the same results; ``None`` = one a core, or one a CPU of the
            cluster.
        address: of a Ray cluster (``host:port``) whose nodes serve, too.

    Raises:
        UserError: if no request of a deployment finishes, or the cluster cannot be joined.
    """
    split = [_split(plan, question) for plan in plans]
    tables = [StepTables() for _ in plans]
    tasks: list[_Task] = []
    for plan, shards, own in zip(plans, split, tables, strict=True):
        before = itertools.accumulate((one.trace.num_requests for one in shards), initial=0)
        tasks += [
            partial(_serve_shard, shard, start, question.trace.num_requests, own)
            for shard, start in zip(shards, before, strict=False)
        ] or [partial(_serve_whole, plan, question, own)]
    found = iter(_run_tasks(tasks, tick, workers, address))
    served: list[ServedDeployment] = []
    for plan, shards, own in zip(plans, split, tables, strict=True):
        if shards:
            parts = [next(found) for _ in shards]
            record = make_record(merge_shards(plan, question.trace, shards, parts))
            served.append(_sum_up(plan, question, record, own, tick))
        else:
            served.append(next(found))
    return served


def _split(plan: DeploymentPlan, question: Question) -> list[Shard]:
    if question.fidelity != "step":
        return []
    most = min(question.trace.num_requests // _SHARD_REQUESTS, _MOST_SHARDS)
    return split_replicas(plan, question.trace, most)


def _run_tasks(
    tasks: Sequence[_Task], tick: Progress, workers: int | None, address: str | None
) -> list[Any]:
    """Run all tasks, and return their results in the same order."""
    if workers == 1 and address is None:
        return [task(tick=tick) for task in tasks]
    shown = count_part(tick, "deployments and parts of them", len(tasks))
    with Workers(min(workers, len(tasks)) if workers else None, address) as pool:
        return pool.map(_run_task, tasks, shown)


def _run_task(task: _Task) -> Any:
    return task(tick=show_nothing)


def _serve_shard(
    shard: Shard, before: int, total: int, tables: StepTables, tick: Progress
) -> ServedShard:
    """Serve a shard.

    Args:
        before: requests of the shards before it, for progress.
    """

    def show(done: int) -> None:
        tick(shard.plan.name, before + done, total)

    return serve_shard(shard, show, tables.slow(1.0))


def _serve_whole(
    plan: DeploymentPlan, question: Question, tables: StepTables, tick: Progress
) -> ServedDeployment:
    shown = count_part(tick, plan.name, question.trace.num_requests)
    record = run_plan(plan, question.trace, question.fidelity, shown, tables.slow(1.0))
    return _sum_up(plan, question, record, tables, tick)


def _sum_up(
    plan: DeploymentPlan,
    question: Question,
    record: DeploymentRecord,
    tables: StepTables,
    tick: Progress,
) -> ServedDeployment:
    of_judged = select_judged(record.requests, record.num_lead_in)
    if not (of_judged["outcome"] == "finished").any():
        which = "judged request" if record.num_lead_in else "request"
        raise UserError(
            f"{question.where} [deployments '{plan.name}']: no {which} finished: failures stop its "
            "replicas before; let them stop later"
        )
    slo = question.slo
    summary = summarise([plan], [record], slo)
    at_steps = record if question.fidelity == "step" else None
    drawn = draw_figures(
        plan, question.trace, slo, question.seed, summary.iloc[0], at_steps, tables, tick
    )
    return ServedDeployment(record, summary, drawn)
