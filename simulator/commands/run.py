"""``moesim run``: a scenario through plan, engine and metrics to a results folder."""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from simulator.deployment.facts import facts_of
from simulator.deployment.memory import check_requests
from simulator.deployment.plan import make_plan
from simulator.engine.cluster import Fidelity, run_plan
from simulator.results.folder import Results, gather
from simulator.results.metrics import summarise
from simulator.results.provenance import revision, versions
from simulator.results.verdict import verdict
from simulator.scenario.scenario import Scenario
from simulator.workload.requests import describe, load_requests, longest_tokens

Tick = Callable[[str, int, int], None]
"""Told what is being done, how many requests of it are done, and how many there are."""


def run_scenario(
    scenario: Scenario, path: Path, fidelity: Fidelity = "step", tick: Tick = lambda *_: None
) -> Results:
    """Serve the scenario's workload on every deployment, with the same arrivals.

    Args:
        path: the scenario's file; paths in it are relative to its folder.

    Raises:
        UserError: if anything that the scenario names is wrong or does not fit. All deployments are
            checked before one runs.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
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
        tick(plan.name, 0, trace.num_requests)
        records.append(
            run_plan(plan, trace, fidelity, partial(_forward, tick, plan.name, trace.num_requests))
        )
    slo = scenario.workload.slo
    requests = scenario.workload.requests
    run: dict[str, Any] = {
        "name": scenario.name,
        "seed": scenario.seed,
        "command": shlex.join(["moesim", *sys.argv[1:]]),
        "fidelity": fidelity,
        "started": started.isoformat(timespec="seconds"),
        "versions": versions(),
        "revision": revision(),
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
    run["wall_s"] = round(time.perf_counter() - clock, 3)
    return replace(results, run=run)


def _forward(tick: Tick, name: str, total: int, done: int) -> None:
    tick(name, done, total)
