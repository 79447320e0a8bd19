"""Sentences on replicas that are launched, drain and leave, and the number of them over time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from simulator.results.folder import Results
from simulator.results.formats import count, number, seconds_text

SCALES = ("launches", "drains", "leaves")
"""Kinds of changes by which a deployment scales."""
_NUM_NAMED = 3
"""Number of changes that are described one by one."""


def is_scaled(facts: dict[str, Any]) -> bool:
    """Whether a deployment ever held fewer replicas than there could be.

    Args:
        facts: its entry in ``run.json``.
    """
    has_fewer = facts.get("first_replicas", 0) < facts.get("replicas", 0)
    changes = facts.get("changes") or []
    return ("first_replicas" in facts and has_fewer) or any(
        change.get("kind") in SCALES for change in changes
    )


def tell_gpus(row: pd.Series) -> str:
    """Tell how many GPUs a deployment has, or holds on average: ``9.3 of 16 GPUs``.

    Args:
        row: the deployment's row of ``summary.csv``.
    """
    most = int(row["num_gpus"])
    held = float(row.get("gpus_held", most))
    return count(most, "GPU") if not held < most else f"{number(held)} of {count(most, 'GPU')}"


def list_held(facts: dict[str, Any]) -> list[tuple[float, int, int]]:
    """List the times at which the number of replicas changes, seconds, with how many are held and
    how many of these serve from then on.

    Args:
        facts: the deployment's entry in ``run.json``.
    """
    changes = facts.get("changes") or []
    num_gpus = facts["num_gpus"] // facts["replicas"]
    first = facts.get("first_replicas", facts["replicas"])
    numbers = facts.get("first_numbers", range(first))
    held, serving = set(numbers), dict.fromkeys(numbers, num_gpus)
    found = [(0.0, first, first)]
    events = [(change["at_s"], change, change["num_gpus"]) for change in changes]
    # A launched replica serves later, unless it has left or failed until then.
    for number_of, (at_s, change, gpus) in enumerate(events):
        if change["serves_s"] > at_s:
            events[number_of] = (at_s, change, 0)
            events.append((change["serves_s"], {**change, "kind": "serves"}, gpus))
    for at_s, change, gpus in sorted(events, key=lambda event: event[0]):
        for replica in change["replicas"]:
            if change["kind"] == "serves" and _has_changed(changes, change, replica):
                continue
            if change["kind"] == "launches":
                held.add(replica)
            elif change["kind"] == "leaves":
                held.discard(replica)
            serving[replica] = gpus
        found.append((at_s, len(held), sum(map(bool, serving.values()))))
    return found


def _has_changed(changes: list[dict[str, Any]], change: dict[str, Any], replica: int) -> bool:
    """Whether a replica changed again before it served."""
    return any(
        replica in other["replicas"]
        and change["at_s"] < other["at_s"] <= change["serves_s"]
        and other["kind"] != "drains"
        for other in changes
    )


def tell_scaling(results: Results, name: str, row: pd.Series, short: str) -> str | None:
    """Describe how many replicas a deployment held, and when they were launched and drained;
    ``None`` where it held all of them all the time.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: name of the deployment in sentences.
    """
    facts = results.run["deployments"][name]
    if not is_scaled(facts):
        return None
    changes = [one for one in facts.get("changes") or [] if one["kind"] in SCALES]
    counts = [held for _, held, _ in list_held(facts)]
    low, high = min(counts), max(counts)
    span = count(low, "replica") if low == high else f"{low:,} to {high:,} replicas"
    hours = number(float(row["gpus_held"]) * float(row["duration_s"]) / 3600)
    told = list(_tell_changes(changes, float(row["duration_s"])))
    named = told[:_NUM_NAMED]
    if len(told) > _NUM_NAMED:
        last_s, more = seconds_text(changes[-1]["at_s"]), len(told) - _NUM_NAMED
        named.append(f"{count(more, 'more change')} follow{'s' * (more == 1)} until {last_s}")
    how = f": {', '.join(named)}" if named else ""
    return f"{short} holds {span}, {tell_gpus(row)} on average ({hours} GPU-hours){how}."


def _tell_changes(changes: list[dict[str, Any]], end_s: float) -> Iterator[str]:
    """Describe each launch and each end of a replica, in a run that ends at some time."""
    for place, change in enumerate(changes):
        (replica,) = change["replicas"]
        at = seconds_text(change["at_s"])
        later = (one for one in changes[place + 1 :] if replica in one["replicas"])
        if change["kind"] == "launches":
            serves = seconds_text(change["serves_s"])
            late = change["serves_s"] > end_s
            then = f"would serve from {serves}, after the end" if late else f"serves from {serves}"
            yield f"replica {replica} starts at {at} and {then}"
        elif change["kind"] == "drains":
            left = next((one for one in later if one["kind"] == "leaves"), None)
            ends = f" and leaves at {seconds_text(left['at_s'])}" if left else ""
            yield f"replica {replica} drains from {at}{ends}"
        else:
            before = [one for one in changes[:place] if replica in one["replicas"]]
            if not before or before[-1]["kind"] != "drains":
                yield f"replica {replica} leaves at {at}"
