"""Sentences on what of a recommended cluster stands idle, and on what is left when GPUs or nodes
are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.results.plan_text import money, percent


def explain_idle(answer: dict[str, Any]) -> Iterator[str]:
    """Why the cluster is as large as it is, and why some of its GPUs stand idle."""
    best, spare = answer["recommended"], answer.get("spare") or {}
    used, size = best.get("gpus_used"), best["gpus"]
    if spare.get("lost"):
        yield _why_spare(answer, spare, size)
    if used is not None and used < size:
        kept = min(spare.get("gpus", 0), size - used)
        why = (
            (
                "they are what may be lost; every figure is without them, and replicas there make "
                "all of it faster until then"
            )
            if kept
            else ""
        )
        if size - used > kept:
            more = (
                "the cluster comes in no smaller size, and another replica there would add headroom"
            )
            why = f"{kept} of them are what may be lost; {more}" if kept else more
        stand = "stands" if size - used == 1 else "stand"
        yield f"{size - used} of its {size} GPUs {stand} idle: {why}."


def explain_losses(answer: dict[str, Any]) -> Iterator[str]:
    """The most that may be lost with every target still met, what the next loss does, and what it
    would take to stand that.
    """
    rows = [row for row in answer.get("losses") or [] if row["nodes_lost"] or row["gpus_lost"]]
    kept = [row for row in rows if row.get("met")]
    if kept:
        yield f"With {kept[-1]['lost']} lost it still meets every target."
    missed = next((row for row in rows if not row.get("met")), None)
    if missed is None or any(row["nodes_lost"] for row in kept):
        return
    share = missed.get("attainment")
    if missed.get("text"):
        said = f"With {missed['lost']} lost {missed['text']}"
    else:
        served = (
            ""
            if share is None
            else f": {percent(share)} of requests are served within their limits"
        )
        said = f"With {missed['lost']} lost a target is missed{served}"
    spare: dict[str, Any] = next(
        (row for row in answer.get("spare_nodes") or [] if row["lost"] == missed["lost"]), {}
    )
    if spare.get("gpus"):
        said += f"; to keep every target then takes {_cluster(answer, spare)}"
        said += _in_whole_nodes(answer, spare)
    yield f"{said}."


def _why_spare(answer: dict[str, Any], spare: dict[str, Any], size: int) -> str:
    """What may be lost, and what would do if nothing were."""
    alone = f", each replica on one of {spare['nodes']} nodes" if spare.get("is_spread") else ""
    said = f"The cluster has {_gpus(size)}{alone}, since {spare['lost']} may be lost"
    said += _in_whole_nodes(answer, spare)
    without: dict[str, Any] = next(
        (row for row in answer.get("spare_nodes") or [] if row["lost"] == "nothing"), {}
    )
    if without.get("gpus"):
        said += f"; without the spare {_gpus(without['gpus'])} would do{_cost(answer, without)}"
    return f"{said}."


def _cluster(answer: dict[str, Any], row: dict[str, Any]) -> str:
    """The cluster of a row with its nodes and cost."""
    nodes = "1 node" if row["nodes"] == 1 else f"{row['nodes']:,} nodes"
    return f"{_gpus(row['gpus'])} on {nodes}{_cost(answer, row)}"


def _in_whole_nodes(answer: dict[str, Any], row: dict[str, Any]) -> str:
    """What whole nodes would take, after a semicolon; empty where the cluster has them already."""
    if not row.get("gpus_in_whole_nodes"):
        return ""
    cost = _cost(answer, {"cost_per_hour": row["cost_per_hour_in_whole_nodes"]})
    return f"; where only whole nodes are rented it takes {_gpus(row['gpus_in_whole_nodes'])}{cost}"


def _cost(answer: dict[str, Any], row: dict[str, Any]) -> str:
    """A row's cost after a comma; empty where it costs nothing."""
    if not row.get("cost_per_hour"):
        return ""
    return f", {money(row['cost_per_hour'], answer.get('currency', 'USD'))} per hour"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count:,} GPUs"
