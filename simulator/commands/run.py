"""``moesim run``: a scenario through plan, engine and metrics to a results folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.base.findings import Finding, tell
from simulator.base.progress import Progress, show_nothing
from simulator.commands.deployments import Question, prepare_run, serve_deployments
from simulator.commands.explain import explain_run
from simulator.config.workload import LogSpec
from simulator.deployment.facts import facts_of
from simulator.deployment.notes import (
    default_notes,
    limit_notes,
    notes_of,
    refusal_notes,
    start_notes,
)
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import Fidelity
from simulator.parallel.work_list import check_count
from simulator.planner.uncertainty.run_bands import make_bands
from simulator.results.folder import Results, gather
from simulator.results.provenance import Provenance
from simulator.results.sampled_steps import describe_record, find_errors
from simulator.results.verdict import verdict
from simulator.runtime import require
from simulator.scenario.jobs import Source, load_scenario
from simulator.scenario.scenario import Scenario
from simulator.step.request_choices import describe_choices
from simulator.workload.requests import describe, longest_tokens
from simulator.workload.traces import LEAST_ROUNDS, RequestTrace


def list_notes(
    scenario: Scenario, plans: list[DeploymentPlan], trace: RequestTrace
) -> Iterator[Finding]:
    """Find reasons why a deployment may not start, assumptions, and things left out."""
    longest = longest_tokens(trace)
    for plan in plans:
        for pool in plan.pools:
            yield from start_notes(pool, longest, ", prefill" if pool is plan.prefill else "")
    for plan in plans:
        yield from refusal_notes(plan, trace)
    yield from limit_notes(plans, trace)
    for plan in plans:
        yield from describe_choices(plan.placement, trace)
    yield from default_notes(plans)
    for plan in plans:
        for pool in plan.pools:
            yield from notes_of(pool)
    for plan in plans:
        if plan.spec.kv_tiers and not trace.prefix_block_tokens:
            yield Finding("note.no_prefixes", plan=plan.name)
    if trace.judge_from_s:
        yield Finding(
            "note.lead_in",
            lead_in=trace.num_lead_in,
            requests=trace.num_requests,
            from_s=trace.judge_from_s,
        )
    if trace.concurrency is not None:
        yield from _list_loop_notes(trace, trace.concurrency)
        if any(plan.failures for plan in plans):
            yield Finding("note.lost_in_loop")
    if scenario.execution.faults:
        yield Finding("note.faults", number=len(scenario.execution.faults))


def _list_loop_notes(trace: RequestTrace, clients: int) -> Iterator[Finding]:
    """Find whether the first round of a closed loop is judged, and requests in lockstep."""
    if trace.num_lead_in:
        yield Finding("note.first_round_left_out", clients=clients)
    elif clients > 1 and not trace.judge_ramp:
        yield Finding("note.first_round_judged", clients=clients, least=LEAST_ROUNDS * clients)
    is_equal = not np.ptp(trace.num_input) and not np.ptp(trace.num_output)
    if clients > 1 and trace.start == "at_once" and is_equal:
        yield Finding("note.lockstep")


def run(
    scenario: Source,
    *,
    fidelity: Fidelity = "step",
    workers: int | None = 1,
    address: str | None = None,
    explain: bool = False,
    progress: Progress = show_nothing,
) -> Results:
    """Serve a scenario's workload on each of its deployments, with the same arrivals.

    Args:
        scenario: as :func:`load_scenario` takes it, which also overrides keys.
        fidelity: ``step`` prices whole steps (fast); ``rank`` and ``message`` simulate each rank,
            and each message between ranks (for small traces).
        workers: processes that deployments, and shards of long ones, are spread over, with the same
            results; ``None`` = one a core, or one a CPU of the cluster.
        address: Ray cluster (``host:port``) whose nodes serve deployments.
        explain: whether ``explanation`` of the results' ``run`` says where the time of each
            deployment's tokens goes (:class:`~simulator.results.explained.Explained`).
        progress: called with the name of a part of the work, how much of it is done, and how much
            there is.

    Raises:
        UserError: if anything that the scenario names is wrong or does not fit, or the cluster
            cannot be joined. All deployments are checked before one runs.

    >>> results = run({
    ...     "workload": {
    ...         "requests": {
    ...             "arrivals": {"kind": "poisson", "rate_per_s": 4.0},
    ...             "lengths": {"kind": "fixed", "num_input": 64, "num_output": 8},
    ...         },
    ...         "num_requests": 5,
    ...     },
    ...     "deployments": [
    ...         {"name": "one GPU", "model": "olmoe-1b-7b", "cluster": "h100-sxm-8"},
    ...     ],
    ... })
    >>> results.summary["num_requests"].tolist()
    [5.0]
    """
    check_fidelity(fidelity)
    check_count(workers)
    if address is not None:
        require("ray", "--address")
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario)
    made = Provenance.begin()
    plans, trace = prepare_run(scenario)
    slo = scenario.workload.slo
    question = Question(trace, fidelity, slo, scenario.seed, scenario.where)
    served = serve_deployments(plans, question, progress, workers, address)
    records = [one.record for one in served]
    requests = scenario.workload.requests
    if isinstance(requests, LogSpec):
        requests = requests.file
    facts: dict[str, Any] = {
        "name": scenario.name,
        "seed": scenario.seed,
        "fidelity": fidelity,
        "workload": {
            "name": "generated" if isinstance(requests, dict) else Path(requests).name,
            "provenance": trace.provenance,
            "notes": list(trace.notes),
            **describe(trace),
        },
        "slo": slo.model_dump(),
        "deployments": {
            plan.name: facts_of(plan) | describe_record(record)
            for plan, record in zip(plans, records, strict=True)
        },
        "notes": [
            *tell(list_notes(scenario, plans, trace)),
            *(str(found) for one in records for found in find_errors(one)),
        ],
        "scenario": scenario.model_dump(mode="json"),
    }
    summary = pd.concat([one.summary for one in served], ignore_index=True)
    results = gather(facts, summary, records)
    drawn = {plan.name: one.drawn for plan, one in zip(plans, served, strict=True)}
    facts["bands"] = make_bands(drawn)
    facts["verdict"] = verdict(results)
    if explain:
        facts["explanation"] = explain_run(
            scenario, plans, results, fidelity, workers, address, progress
        )
    return replace(results, run=facts | made.describe())


def check_fidelity(name: str) -> Fidelity:
    """Refuse a name that is no fidelity.

    Raises:
        UserError: naming those that there are.
    """
    known: tuple[Fidelity, ...] = get_args(Fidelity)
    for fidelity in known:
        if name == fidelity:
            return fidelity
    raise UserError(f"--fidelity {name or repr(name)}: must be step, rank or message")
