"""``moesim run``: a scenario through plan, engine and metrics to a results folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.base.progress import Progress, count_part, show_nothing
from simulator.deployment.facts import facts_of
from simulator.deployment.memory import check_requests
from simulator.deployment.plan import make_plan
from simulator.engine.cluster import Fidelity, run_plan
from simulator.results.folder import Results, gather
from simulator.results.metrics import summarise
from simulator.results.provenance import Provenance
from simulator.results.verdict import verdict
from simulator.scenario.scenario import Scenario
from simulator.workload.requests import describe, load_requests, longest_tokens


def run_scenario(
    scenario: Scenario, path: Path, fidelity: Fidelity = "step", tick: Progress = show_nothing
) -> Results:
    """Serve the scenario's workload on every deployment, with the same arrivals.

    Args:
        path: the scenario's file; paths in it are relative to its folder.

    Raises:
        UserError: if anything that the scenario names is wrong or does not fit. All deployments are
            checked before one runs.
    """
    made = Provenance.begin()
    folder = path.resolve().parent
    plans = [
        make_plan(deployment, scenario.seed, str(path), folder)
        for deployment in scenario.deployments
    ]
    trace = load_requests(scenario.workload, folder, scenario.seed, f"{path} [workload]")
    for plan in plans:
        check_requests(plan.capacity, longest_tokens(trace), f"{path} [deployments '{plan.name}']")
        if plan.prefill is not None:
            check_requests(
                plan.prefill.capacity,
                int(trace.num_input.max()) + 1,
                f"{path} [deployments '{plan.name}'] [prefill]",
            )
    records = []
    for plan in plans:
        shown = count_part(tick, plan.name, trace.num_requests)
        records.append(run_plan(plan, trace, fidelity, shown))
    slo = scenario.workload.slo
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
        "deployments": {plan.name: facts_of(plan) for plan in plans},
        "scenario": scenario.model_dump(mode="json"),
    }
    results = gather(run, summarise(plans, records, slo), records)
    run["verdict"] = verdict(results)
    return replace(results, run=run | made.describe())
