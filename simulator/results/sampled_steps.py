"""Sampled steps of a run: their names, and their spans as a trace that Perfetto opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from simulator.base.findings import Finding
from simulator.base.formats import seconds_text
from simulator.results.results_folder import ResultsFolder
from simulator.results.tables import DeploymentRecord


def chrome_trace(spans: pd.DataFrame, title: Callable[[str, str], str]) -> dict[str, object]:
    """The spans in Chrome's trace-event format: a process a deployment and step, a thread a rank,
    microseconds.

    Args:
        title: of the step of a deployment and phase.
    """
    events: list[dict[str, object]] = []
    for number, ((deployment, phase), group) in enumerate(
        spans.groupby(["deployment", "phase"], sort=False)
    ):
        events.append(
            {
                "ph": "M",
                "pid": number,
                "tid": 0,
                "name": "process_name",
                "args": {"name": f"{deployment}: {title(str(deployment), str(phase))}"},
            }
        )
        for rank in sorted(group["rank"].unique()):
            thread = {
                "ph": "M",
                "pid": number,
                "tid": int(rank),
                "name": "thread_name",
                "args": {"name": f"rank {rank}"},
            }
            events.append(thread)
        columns = (
            group[column].tolist() for column in ("rank", "name", "layer", "start_s", "duration_s")
        )
        for rank, name, layer, start_s, duration_s in zip(*columns, strict=True):
            event = {"ph": "X", "pid": number, "tid": int(rank), "name": name, "cat": name}
            event |= {"ts": start_s * 1e6, "dur": duration_s * 1e6, "args": {"layer": int(layer)}}
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


SAMPLED = "shown_steps"  # as folders have it
"""Key of a deployment in ``run.json``: by phase, the fields of
:class:`~simulator.results.tables.SampledStep`; by kind of step, those of
:class:`~simulator.results.executed.ShownTimeline`."""


def describe_record(record: DeploymentRecord) -> dict[str, object]:
    """Describe a deployment's sampled steps, stopped or started replicas, moved experts, load
    imbalance over time and overflow by layer for ``run.json``.
    """
    optional = {
        "imbalance_curve": record.imbalance_curve,
        "price_audit": record.price_audit,
        "changed_audit": record.changed_audit,
        "wires_shared": record.wires_shared,
        "overflow_by_layer": record.overflow_by_layer,
    }
    found: dict[str, object] = {
        SAMPLED: {phase: asdict(step) for phase, step in record.sampled_steps.items()},
        "changes": [asdict(change) for change in record.changes],
        "rebalances": [asdict(moved) for moved in record.rebalances],
        "kv_tiers": [tier._asdict() for tier in record.tiers],
    }
    return found | {name: one._asdict() for name, one in optional.items() if one is not None}


def find_errors(record: DeploymentRecord) -> Iterator[Finding]:
    """Find how far prices by mixes of requests, and those of steps that something else slows, are
    off on the run's own steps; how much caches between pools and steps may slow each other beyond
    what they were priced at; and how long requests waited for blocks in tiers.
    """
    audits = {"audit.mix": record.price_audit, "audit.slowed": record.changed_audit}
    for kind, audit in audits.items():
        if audit is not None:
            yield Finding(kind, name=record.name, audit=audit)
    if record.wires_shared is not None:
        yield Finding("audit.wires", name=record.name, most=record.wires_shared)
    waits_s = record.requests["read_wait_s"]
    waits_s = waits_s[waits_s > 0]
    if len(waits_s):
        mean_s, most_s = float(waits_s.mean()), float(waits_s.max())
        requests = len(waits_s)
        yield Finding(
            "audit.reads", name=record.name, requests=requests, mean_s=mean_s, most_s=most_s
        )


def sampled_step(results: ResultsFolder, deployment: str, phase: str) -> dict[str, Any]:
    """Find the fields of one sampled step.

    Raises:
        KeyError: if there is no step of the phase.
    """
    step: dict[str, Any] = results.facts(deployment)[SAMPLED][phase]
    return step


def step_text(results: ResultsFolder, deployment: str, phase: str) -> str:
    """Name a sampled step by its phase, and where the run took it by its number, replica and time.

    >>> step = {"source": "run", "number": 7, "replica": 0, "start_s": 1.5, "num_batches": 1}
    >>> step_text(ResultsFolder({"deployments": {"a": {SAMPLED: {"decode": step}}}}), "a", "decode")
    'decode step 7 of replica 0, at 1.5 s'
    >>> step = {"source": "representative"}
    >>> step_text(ResultsFolder({"deployments": {"a": {SAMPLED: {"decode": step}}}}), "a", "decode")
    'representative decode step'
    """
    step = sampled_step(results, deployment, phase)
    if step["source"] != "run":
        return f"{step['source']} {phase} step"
    batch = "" if step["num_batches"] == 1 else f", fullest of {step['num_batches']} batches"
    at = seconds_text(step["start_s"])
    return f"{phase} step {step['number']:,} of replica {step['replica']}, at {at}{batch}"
