"""``moesim run``: a scenario through plan, engine and metrics to a results folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.base.progress import Progress, show_nothing
from simulator.commands.deployments import Question, serve_deployments
from simulator.deployment.facts import facts_of
from simulator.deployment.memory import check_requests
from simulator.deployment.notes import memory_notes, notes_of, scheduling_notes, start_notes
from simulator.deployment.own_policies import try_policies
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.engine.timeline import Fidelity
from simulator.planner.run_bands import make_bands
from simulator.results.folder import Results, gather
from simulator.results.provenance import Provenance
from simulator.results.shown_steps import describe_record
from simulator.results.verdict import verdict
from simulator.scenario.scenario import Scenario
from simulator.workload.requests import describe, load_requests, longest_tokens
from simulator.workload.traces import RequestTrace


def prepare_run(scenario: Scenario, path: Path) -> tuple[list[DeploymentPlan], RequestTrace]:
    """The plans of all deployments, and the requests that they are asked.

    Raises:
        UserError: as :func:`run_scenario`.
    """
    folder = path.resolve().parent
    plans = [
        make_plan(deployment, scenario.seed, str(path), folder)
        for deployment in scenario.deployments
    ]
    trace = load_requests(scenario.workload, folder, scenario.seed, f"{path} [workload]")
    for pool in (pool for plan in plans for pool in plan.pools):
        try_policies(pool)
    for plan in plans:
        where = f"{path} [deployments '{plan.name}']"
        check_requests(
            plan.serving.capacity, longest_tokens(trace) + plan.placement.drafts.num_tokens, where
        )
        if plan.prefill is not None:
            longest = int(trace.num_input.max()) + 1
            check_requests(plan.prefill.serving.capacity, longest, f"{where} [prefill]")
    return plans, trace


def notes_on(scenario: Scenario, plans: list[DeploymentPlan], trace: RequestTrace) -> list[str]:
    """What may keep deployments from starting, what a run takes for granted, and what it leaves out
    of account.
    """
    longest = longest_tokens(trace)
    notes = [
        note
        for plan in plans
        for pool in plan.pools
        for note in start_notes(pool, longest, ", prefill" if pool is plan.prefill else "")
    ]
    notes += scheduling_notes(scenario.deployments, plans)
    notes += memory_notes(scenario.deployments, plans)
    notes += [note for plan in plans for pool in plan.pools for note in notes_of(pool)]
    if trace.concurrency is not None and any(plan.failures for plan in plans):
        notes.append(
            "failures in a closed loop: a client whose request is lost sends its next one at once, "
            "so that all clients lose many while no replica is there"
        )
    if scenario.execution.faults:
        count = len(scenario.execution.faults)
        notes.append(
            f"execution.faults ({count}) {'is' if count == 1 else 'are'} not simulated: faults are "
            "injected by moesim execute only"
        )
    return list(dict.fromkeys(notes))


def run_scenario(
    scenario: Scenario,
    path: Path,
    fidelity: Fidelity = "step",
    tick: Progress = show_nothing,
    workers: int | None = 1,
    address: str | None = None,
) -> Results:
    """Serve the scenario's workload on every deployment, with the same arrivals.

    Args:
        path: the scenario's file; paths in it are relative to its folder.
        workers: processes that deployments, and shards of long ones, are spread over, with the same
            results; ``None`` = one a core, or one a CPU of the cluster.
        address: of a Ray cluster (``host:port``) whose nodes serve deployments.

    Raises:
        UserError: if anything that the scenario names is wrong or does not fit, or the cluster
            cannot be joined. All deployments are checked before one runs.
    """
    made = Provenance.begin()
    plans, trace = prepare_run(scenario, path)
    slo = scenario.workload.slo
    question = Question(trace, fidelity, slo, scenario.seed, str(path))
    served = serve_deployments(plans, question, tick, workers, address)
    records = [one.record for one in served]
    requests = scenario.workload.requests
    run: dict[str, Any] = {
        "name": scenario.name,
        "seed": scenario.seed,
        "fidelity": fidelity,
        "workload": {
            "name": Path(requests).name if isinstance(requests, str) else "generated",
            "provenance": trace.provenance,
            "notes": list(trace.notes),
            **describe(trace),
        },
        "slo": slo.model_dump(),
        "deployments": {
            plan.name: facts_of(plan) | describe_record(record)
            for plan, record in zip(plans, records, strict=True)
        },
        "notes": notes_on(scenario, plans, trace),
        "scenario": scenario.model_dump(mode="json"),
    }
    summary = pd.concat([one.summary for one in served], ignore_index=True)
    results = gather(run, summary, records)
    drawn = {plan.name: one.drawn for plan, one in zip(plans, served, strict=True)}
    run["bands"] = make_bands(drawn, trace.num_requests)
    run["verdict"] = verdict(results)
    return replace(results, run=run | made.describe())
