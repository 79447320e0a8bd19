"""Small runs, simulated once, and the same under other names: what the page of a run is tested
with.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pandas as pd
import pytest

import simulator
from simulator.commands import explain
from simulator.explanation.changes import list_changes
from simulator.results.folder import LONG_TABLES, SHORT_TABLES, Results
from simulator.results.verdict import with_verdict

HOSTILE = "<script>alert('x')</script> & \"quoted\" <b>bold</b>"
LONG = "a deployment whose author gave it a name that goes on and on, with every setting in it"
SPREAD = {"model": "stdlib-moe", "cluster": "h100-sxm-8", "parallel": {"attention_dp": 4, "ep": 4}}
STEPS = {"scheduling": {"kind": "chunked", "token_budget": 256, "max_sequences": 16}}
DEPLOYMENTS = (
    {
        "name": "mixture, experts over 4 GPUs",
        **SPREAD,
        "replicas": 1,
        "overflow": {"kind": "capacity", "factor": 1.0},
        "rebalancing": {"kind": "periodic", "every_s": 0.2, "least_gain": 1e-6},
    },
    {
        "name": "mixture, as load asks",
        **SPREAD,
        "replicas": 2,
        "scaling": {
            "kind": "schedule",
            "changes": [
                {"at_s": 0.0, "replicas": 1},
                {"at_s": 0.3, "replicas": 2},
                {"at_s": 0.8, "replicas": 1},
            ],
            "startup_s": 0.1,
        },
    },
    {
        "name": "dense, tensor parallel",
        "model": "llama-3.1-8b",
        "cluster": "h100-sxm-8",
        "parallel": {"tp": 4},
        "replicas": 1,
    },
    {
        "name": "mixture, at home",
        "model": "stdlib-moe",
        "cluster": "desktop-rtx-4090",
        "offload": {"slots": 4},
    },
)


def serve(*deployments: dict[str, Any], num_requests: int = 60, **options: Any) -> Results:
    """Simulate some deployments, with targets."""
    lengths = {
        "kind": "lognormal",
        "input": {"p50": 200.0, "p90": 600.0},
        "output": {"p50": 20.0, "p90": 60.0},
    }
    if num_requests == 1:
        lengths = {"kind": "fixed", "num_input": 200, "num_output": 1}
    requests = {"arrivals": {"kind": "poisson", "rate_per_s": 50.0}, "lengths": lengths}
    workload = {"requests": requests, "num_requests": num_requests, "slo": {"ttft_s": 0.1}}
    table = {"name": "a mixture against a dense model", "seed": 7, "workload": workload}
    made = [one | STEPS for one in deployments]
    return simulator.run(table | {"deployments": made}, workers=1, **options)


@cache
def plain() -> Results:
    """Everything that a page may draw: experts that move, have no room and lie below the GPU's
    memory, replicas that come and go, and an explanation.
    """
    with pytest.MonkeyPatch.context() as patch:  # of what would help, little is tried
        patch.setattr(explain, "list_changes", lambda *asked: list_changes(*asked)[:1])
        return serve(*DEPLOYMENTS, explain=True)


def show(run: Results, *names: tuple[str, str], **changes: Any) -> Results:
    """The run with some of its deployments, each as often as it has new names.

    Args:
        names: names in the run and new ones.
        changes: to the facts of each deployment.
    """
    tables: dict[str, Any] = {}
    for table in ("summary", *SHORT_TABLES):
        rows = getattr(run, table)
        parts = [rows[rows["deployment"] == old].assign(deployment=new) for old, new in names]
        tables[table] = pd.concat(parts, ignore_index=True)
    for table in LONG_TABLES:
        tables[table] = {new: getattr(run, table)[old] for old, new in names}
    told = {
        key: {new: run.run[key][old] | more for old, new in names}
        for key, more in (("deployments", changes), ("explanation", {}))
        if key in run.run
    }
    own = {key: value for key, value in run.run.items() if key != "bands"}
    return with_verdict(Results(run=own | told, **tables))


def rename(*new: str, **changes: Any) -> Results:
    """The plain run with its deployments in turn under new names."""
    olds = [plain().deployments[number % len(DEPLOYMENTS)] for number in range(len(new))]
    return show(plain(), *zip(olds, new, strict=True), **changes)


def many() -> Results:
    """Nine deployments with long names, one a rumoured model."""
    found = rename(*(f"{LONG}, no. {number}" for number in range(8)), "a rumoured one")
    last = found.run["deployments"]["a rumoured one"]
    last |= {"is_rumour": True, "model_title": "Rumoured 2T"}
    return found


def hostile() -> Results:
    found = rename(HOSTILE, "plain", model_title=HOSTILE, warnings=[HOSTILE])
    verdict = {"headline": HOSTILE, "reasons": [HOSTILE]}
    return dataclasses.replace(found, run=found.run | {"name": HOSTILE, "verdict": verdict})


def bare() -> Results:
    """Almost nothing said in run.json."""
    found = rename("only", currency="", assumptions=[], memory=None)
    run = {"name": "bare", "slo": {}, "deployments": found.run["deployments"]}
    return dataclasses.replace(found, run=run)


RUNS = {
    "plain": plain,
    "many": many,
    "hostile": hostile,
    "bare": bare,
    "one request": lambda: serve(DEPLOYMENTS[0], DEPLOYMENTS[2], num_requests=1),
    "single": lambda: rename("a mixture"),
}
