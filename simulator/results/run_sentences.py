"""Findings on a run: overflow, rebalancing, scaling, queues, changes of replicas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.columns import Columns, Picked
from simulator.base.findings import Finding
from simulator.base.formats import count, number
from simulator.results.folder import Results
from simulator.results.tables import ReplicasChanged

_MUCH = 1.05
"""Ratio of the largest share of a layer to the mean layer's from which that layer is named."""


def find_drops(row: pd.Series, facts: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """Find the shares of choices that were dropped or rerouted, where any can be.

    Args:
        row: the deployment's row of ``summary.csv``.
        facts: of the deployment in ``run.json``.
        name: the deployment's name.
    """
    share = float(row["dropped_share"])
    if np.isnan(share):
        return
    by_layer = facts.get("overflow_by_layer") or {}
    dropped, rerouted = (by_layer.get(key) or [0.0] for key in ("dropped", "rerouted"))
    moved = sum(rerouted) / len(rerouted)
    if not share and not moved:
        yield Finding("run.drops_nothing", name=name)
        return
    worst = _find_worst(dropped), _find_worst(rerouted)
    yield Finding("run.drops", name=name, dropped=share, rerouted=moved, worst=worst)


def _find_worst(share_L: list[float]) -> tuple[float, int] | None:
    """Find the largest share and its layer, where layers differ."""
    worst = max(share_L)
    differs = worst * len(share_L) >= _MUCH * sum(share_L)
    return (worst, share_L.index(worst)) if differs else None


_SMALL = 0.02
"""Share of the unmoved imbalance that a move has to take away to be called a gain."""


def find_rebalances(facts: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """Find the moves of a deployment's experts, if any. Moves that were made for real have their
    predicted seconds beside the measured ones.

    Args:
        facts: the deployment's entry in ``run.json``.
        name: of the deployment in sentences.
    """
    moves = facts.get("rebalances")
    if not moves:
        return

    def average(key: str) -> float | None:
        known = [moved[key] for moved in moves if moved.get(key) is not None]
        return mean(known) if known else None

    next_, unmoved = average("imbalance_next"), average("imbalance_unmoved")
    yield Finding(
        "run.rebalances",
        name=name,
        moves=len(moves),
        copies=average("num_experts"),
        num_bytes=average("num_bytes"),
        seconds=average("seconds"),
        predicted_s=average("predicted_s") if all("predicted_s" in one for one in moves) else None,
        alone_s=average("alone_s"),
        stopped_s=sum(moved["seconds"] for moved in moves if moved["stops"]),
        parts=mean(moved.get("num_parts", 1) for moved in moves),
        next_imbalance=next_,
        unmoved_imbalance=unmoved,
        gains=(unmoved or 0.0) - (next_ or 0.0) > _SMALL * (unmoved or 0.0),
    )


def describe_move(moved: Mapping[str, Any]) -> Finding:
    """Describe one move in few words: what it carried, how long it took and what it changed."""
    return Finding("run.move", **moved)


SCALES = ("launches", "drains", "leaves")
"""Kinds of changes by which a deployment scales."""
_NUM_NAMED = 3
"""Number of changes that are described one by one."""


def list_changes(facts: Mapping[str, Any]) -> list[ReplicasChanged]:
    """List the changes of a deployment's replicas, by its entry in ``run.json``."""
    return [ReplicasChanged(**change) for change in facts.get("changes") or []]


def is_scaled(facts: Mapping[str, Any]) -> bool:
    """Whether a deployment ever held fewer replicas than there could be, by its entry in
    ``run.json``.
    """
    has_fewer = facts.get("first_replicas", math.inf) < facts.get("replicas", 0)
    return has_fewer or any(change.kind in SCALES for change in list_changes(facts))


def tell_gpus(row: pd.Series) -> str:
    """Tell how many GPUs a deployment has, or holds on average: ``9.3 of 16 GPUs``.

    Args:
        row: the deployment's row of ``summary.csv``.
    """
    most = int(row["num_gpus"])
    held = float(row.get("gpus_held", most))
    return count(most, "GPU") if not held < most else f"{number(held)} of {count(most, 'GPU')}"


def list_held(facts: Mapping[str, Any]) -> list[tuple[float, int, int]]:
    """List the times at which the number of replicas changes, seconds, with how many are held and
    how many of these serve from then on.

    Args:
        facts: the deployment's entry in ``run.json``.
    """
    changes = list_changes(facts)
    num_gpus = facts["num_gpus"] // facts["replicas"]
    first = facts.get("first_replicas", facts["replicas"])
    numbers = facts.get("first_numbers", range(first))
    held, serving = set(numbers), dict.fromkeys(numbers, num_gpus)
    found = [(0.0, first, first)]
    events = [(change.at_s, change, change.num_gpus) for change in changes]
    # A launched replica serves later, unless it has left or failed until then.
    for number_of, (at_s, change, gpus) in enumerate(events):
        if change.serves_s > at_s:
            events[number_of] = (at_s, change, 0)
            events.append((change.serves_s, replace(change, kind="serves"), gpus))
    for at_s, change, gpus in sorted(events, key=lambda event: event[0]):
        for replica in change.replicas:
            if change.kind == "serves" and _has_changed(changes, change, replica):
                continue
            if change.kind == "launches":
                held.add(replica)
            elif change.kind == "leaves":
                held.discard(replica)
            serving[replica] = gpus
        found.append((at_s, len(held), sum(map(bool, serving.values()))))
    return found


def _has_changed(changes: list[ReplicasChanged], change: ReplicasChanged, replica: int) -> bool:
    """Whether a replica changed again before it served."""
    return any(
        replica in other.replicas
        and change.at_s < other.at_s <= change.serves_s
        and other.kind != "drains"
        for other in changes
    )


def find_scaling(results: Results, name: str, row: pd.Series, short: str) -> Iterator[Finding]:
    """Find how many replicas a deployment held, and when they were launched and drained, unless it
    held all of them all the time.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: name of the deployment in sentences.
    """
    facts = results.facts(name)
    if not is_scaled(facts):
        return
    changes = [one for one in list_changes(facts) if one.kind in SCALES]
    counts = [held for _, held, _ in list_held(facts)]
    duration_s = float(row["duration_s"])
    told = list(_find_scalings(changes, duration_s))
    yield Finding(
        "run.scaling",
        name=short,
        low=min(counts),
        high=max(counts),
        gpus=tell_gpus(row),
        gpu_hours=float(row["gpus_held"]) * duration_s / 3600,
        changes=told[:_NUM_NAMED],
        more=len(told[_NUM_NAMED:]),
        last_s=changes[-1].at_s if changes else 0.0,
    )


def _find_scalings(changes: list[ReplicasChanged], end_s: float) -> Iterator[Finding]:
    """Find each launch and each end of a replica, in a run that ends at some time."""
    for place, change in enumerate(changes):
        (replica,), at_s, serves_s = change.replicas, change.at_s, change.serves_s
        later = (one for one in changes[place + 1 :] if replica in one.replicas)
        before = [one for one in changes[:place] if replica in one.replicas]
        if change.kind == "launches":
            yield Finding(
                "run.launches", replica=replica, at_s=at_s, serves_s=serves_s, end_s=end_s
            )
        elif change.kind == "drains":
            left_s = next((one.at_s for one in later if one.kind == "leaves"), None)
            yield Finding("run.drains", replica=replica, at_s=at_s, left_s=left_s)
        elif not before or before[-1].kind != "drains":
            yield Finding("run.leaves", replica=replica, at_s=at_s)


_QUEUE = 0.5
"""Requests waiting on average above which a queue is mentioned."""
_OFTEN = 0.1
"""Share of the time in which requests wait above which the reason is named."""
_LATE = 1.02
"""Ratio of a run's duration to that of its arrivals (and a mean request) above which it has fallen
behind."""
_GROWS = 1.5
"""Ratio of the mean wait of the last quarter of requests to that of the second above which the
queue grows: 7/3 where it grows evenly, 1 where it does not."""


def find_refusals(results: Results, name: str, row: pd.Series, short: str) -> Iterator[Finding]:
    """Count the requests that an engine refuses, and those beyond the model's context, which it
    would refuse or cut short and which are simulated as if it served them.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: name of the deployment in sentences.
    """
    refused = float(row["num_refused"])
    if refused > 0:  # nor undefined
        total = refused + float(row["num_requests"]) + float(row["num_lost"])
        yield Finding("run.refuses", name=short, refused=refused, requests=total)
    context = results.facts(name).get("max_context_tokens")
    if context is not None:
        requests = results.requests[name]
        beyond = float((requests["num_input"] + requests["num_output"] > context).mean())
        if beyond:
            yield Finding("run.too_long", name=short, share=beyond, context=context)


def find_queue(results: Results, name: str, row: pd.Series, short: str) -> Iterator[Finding]:
    """Find a queue and what its requests wait for, which says more of headroom than how busy an
    engine is, which is always busy.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: name of the deployment in sentences.
    """
    steps, requests = results.steps[name], results.requests[name]
    waiting = float((steps["waiting"] * steps["duration_s"]).sum() / steps["duration_s"].sum())
    if waiting <= _QUEUE:
        return
    arrivals_s, duration_s = float(requests["arrival_s"].max()), float(row["duration_s"])
    is_late = duration_s > _LATE * arrivals_s + float(row["e2e_p50_s"]) and arrivals_s > 0
    # The latency of a short run may be that of its queue, which then hides that it grows.
    is_late = is_late or _is_growing(requests, arrivals_s)
    has_pools = (steps["pool"] != "both").any()  # each has limits of its own
    facts = results.run["deployments"][name]
    yield Finding(
        "run.overloaded" if is_late else "run.queues",
        name=short,
        waiting=waiting,
        late_s=duration_s - arrivals_s,
        kv_used=row["kv_used_max"],
        limits=_find_limits(steps),
        max_sequences=None if has_pools else facts["max_sequences"],
        token_budget=None if has_pools else facts["token_budget"],
    )


def _is_growing(requests: Columns, arrivals_s: float) -> bool:
    """Whether later requests wait longer, and for a while that is not short beside the time in
    which they arrive.
    """
    arrival_s = requests["arrival_s"].to_numpy(float)
    wait_s = requests["scheduled_s"].to_numpy(float) - arrival_s
    _, second, _, last = np.array_split(wait_s[np.argsort(arrival_s, kind="stable")], 4)
    if not (np.isfinite(second).any() and np.isfinite(last).any()):
        return False
    last_s = float(np.nanmean(last))
    return last_s > max(_GROWS * float(np.nanmean(second)), (_LATE - 1) * arrivals_s)


def _find_limits(steps: Columns) -> dict[str, float]:
    """Find what requests wait for, with its share of the time in which any waits, the longest
    first.
    """
    queued = Picked(steps, (steps["waiting"] > 0).to_numpy())
    shares = queued["duration_s"].groupby(queued["limited_by"], observed=True).sum()
    shares = (shares / shares.sum()).sort_values(ascending=False, kind="stable")
    return {str(limit): share for limit, share in shares.items() if share >= _OFTEN}


_AGAIN = 0.02
"""Share of repeated prompt work above which it is mentioned."""
_ROOM_WAIT = 0.1
"""Ratio of the wait for room to decode to the time to first token above which it is mentioned."""


def find_changes(results: Results, name: str, row: pd.Series, short: str) -> Iterator[Finding]:
    """Find the failures and recoveries of replicas, and the fate of the requests that they had.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: name of the deployment in sentences.
    """
    facts = results.facts(name)
    changes = [one for one in list_changes(facts) if one.kind not in SCALES]
    if not changes:
        return
    told = _join_hangs(changes)
    yield Finding(
        "run.changes",
        name=short,
        changes=[describe_change(change, since_s) for change, since_s in told[:_NUM_NAMED]],
        more=len(told[_NUM_NAMED:]),
        last_s=changes[-1].at_s,
        retries=int(row["num_retries"]),
        shrinks=any(change.kind == "shrinks" for change in changes),
        lost=int(row["num_lost"]),
        requests=int(row["num_lost"] + row["num_requests"]),
        gives_up="lose" in (facts.get("recovery") or ""),
        availability=row.get("availability", np.nan),
    )


def _join_hangs(changes: list[ReplicasChanged]) -> list[tuple[ReplicasChanged, float | None]]:
    """List the changes but for those that others follow which say what became of them: each with
    the time since which its replicas hang.
    """
    found: list[tuple[ReplicasChanged, float | None]] = []
    hanging: dict[tuple[int, ...], ReplicasChanged] = {}
    for change in changes:
        replicas = tuple(change.replicas)
        if change.kind == "hangs":
            hanging.setdefault(replicas, change)
            continue
        hang = hanging.pop(replicas, None)
        found.append((change, hang.at_s if hang else None))
    return [*found, *((change, None) for change in hanging.values())]


def describe_change(change: ReplicasChanged, since_s: float | None = None) -> Finding:
    """Describe one change, such as ``replica 1 stops at 30 s with 41 requests``.

    Args:
        since_s: time since which the replicas hang.
    """
    return Finding("run.change", **asdict(change), since_s=since_s)


def find_recomputation(row: pd.Series, name: str) -> Iterator[Finding]:
    """Find repeated work for requests that lost their KV blocks, unless it is little."""
    share = float(row["recomputed_share"])
    if share >= _AGAIN and row["num_preemptions"]:
        preemptions, retries = int(row["num_preemptions"]), int(row["num_retries"])
        yield Finding(
            "run.recomputes", name=name, share=share, preemptions=preemptions, retries=retries
        )


def find_room_wait(row: pd.Series, name: str) -> Iterator[Finding]:
    """Find the wait of prompts for KV blocks or a place in the decode pool, unless it is short."""
    wait_s, first_s = float(row["room_wait_mean_s"]), float(row["ttft_mean_s"])
    if wait_s > _ROOM_WAIT * first_s:
        yield Finding("run.waits_for_room", name=name, wait_s=wait_s, share=wait_s / first_s)


_FULL = 0.9
"""Share of the KV cache above which there is little room left."""
_IN_TIME = 0.99
"""Share of requests in time above which targets count as met."""


def find_insides(
    results: Results, rows: Mapping[str, pd.Series], short: Mapping[str, str]
) -> Iterator[Finding]:
    """Find what there is to say of each deployment by itself: what it refused, lost and moved,
    dropped choices, queues and repeated work.

    Args:
        rows: the deployments' rows of ``summary.csv``.
        short: their names in sentences.
    """
    each = [(name, row, short[name]) for name, row in rows.items()]
    told = results.run["deployments"]
    for name, row, own in each:
        yield from find_refusals(results, name, row, own)
    for name, row, own in each:
        yield from find_changes(results, name, row, own)
        yield from find_scaling(results, name, row, own)
    for name, _, own in each:
        yield from find_rebalances(told[name], own)
    for name, row, own in each:
        yield from find_drops(row, told[name], own)
    queues = [one for name, row, own in each for one in find_queue(results, name, row, own)]
    yield from queues if queues or len(rows) == 1 else [_find_headroom(rows, short)]
    for _, row, own in each:
        yield from find_room_wait(row, own)
        yield from find_recomputation(row, own)


def _find_headroom(rows: Mapping[str, pd.Series], short: Mapping[str, str]) -> Finding:
    """Find the headroom where no requests wait: whether targets leave room for more traffic."""
    peaks = {short[name]: float(row["kv_used_max"]) for name, row in rows.items()}
    keeps = all(float(row["slo_attainment"]) >= _IN_TIME for row in rows.values())
    return Finding("verdict.no_queue", peaks=peaks, has_room=keeps and max(peaks.values()) < _FULL)
