"""Sentences on a run: overflow, rebalancing, scaling, queues, changes of replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.columns import Columns, Picked
from simulator.results.folder import Results
from simulator.results.formats import count, num_bytes, number, percent, seconds, seconds_text

_MUCH = 1.05
"""Ratio of the largest share of a layer to the mean layer's from which that layer is named."""


def tell_drops(row: pd.Series, facts: dict[str, Any], short: str) -> str | None:
    """Describe the shares of choices that were dropped or rerouted, and their consequence; ``None``
    where none can be.

    Args:
        row: the deployment's row of ``summary.csv``.
        facts: of the deployment in ``run.json``.
        short: the deployment's name.
    """
    share = float(row["dropped_share"])
    if share != share:
        return None
    by_layer = facts.get("overflow_by_layer") or {}
    dropped, rerouted = (by_layer.get(name) or [0.0] for name in ("dropped", "rerouted"))
    moved = sum(rerouted) / len(rerouted)
    if share == 0.0 and moved == 0.0:
        return f"{short} drops no choice of an expert: there was room for all."
    done = []
    if share:
        done.append(f"drops {_percent(share)} of its tokens' choices of experts{_worst(dropped)}")
    if moved:
        which = "of them" if share else "of its tokens' choices of experts"
        done.append(f"sends {_percent(moved)} {which} to next choices{_worst(rerouted)}")
    less = "it computes less than without, and " if share else ""
    return f"{short} {' and '.join(done)}: {less}what that does to its answers is not simulated."


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "nearly 100 %"


def _worst(share_L: list[float]) -> str:
    """Name the layer with the largest share, where layers differ."""
    worst = max(share_L)
    if worst * len(share_L) < _MUCH * sum(share_L):
        return ""
    return f" ({_percent(worst)} in MoE layer {share_L.index(worst)}, the most)"


_SMALL = 0.02
"""Share of the unmoved imbalance that a move has to take away to be called a gain."""


def tell_rebalances(facts: Mapping[str, Any], short: str) -> str | None:
    """Describe the moves of a deployment's experts; ``None`` where none moved. Moves that were made
    for real have their predicted seconds beside the measured ones.

    Args:
        facts: the deployment's entry in ``run.json``.
        short: name of the deployment in sentences.
    """
    moves: Sequence[dict[str, Any]] = facts.get("rebalances") or []
    if not moves:
        return None
    once = len(moves) == 1
    copies = f"{mean(moved['num_experts'] for moved in moves):,.0f}"
    size = num_bytes(mean(moved["num_bytes"] for moved in moves))
    took = seconds_text(mean(moved["seconds"] for moved in moves))
    if all("predicted_s" in moved for moved in moves):
        took += f" (predicted: {seconds_text(mean(moved['predicted_s'] for moved in moves))})"
    alone = [moved["alone_s"] for moved in moves if moved.get("alone_s") is not None]
    if alone:
        took += f" ({seconds_text(mean(alone))} with the links to themselves)"
    stopped_s = sum(moved["seconds"] for moved in moves if moved["stops"])
    total = "" if once else f", {seconds_text(stopped_s)} in all"
    num_parts = mean(moved.get("num_parts", 1) for moved in moves)
    apart = f"but between its {num_parts:.3g} parts" if num_parts > 1 else ""
    no_step = f"in which a replica forms no step {apart}".rstrip()
    meanwhile = f"{no_step}{total}" if stopped_s else "in the background of steps"
    text = (
        f"Experts of {short} move {'once' if once else f'{len(moves):,} times'}: {copies} copies "
        f"({size} in each replica{'' if once else ', on average'}) in {took}, {meanwhile}."
    )
    judged = [moved for moved in moves if moved["imbalance_next"] is not None]
    if not judged:
        return text
    next_, unmoved = (
        mean(moved[key] for moved in judged) for key in ("imbalance_next", "imbalance_unmoved")
    )
    gained = unmoved - next_ > _SMALL * unmoved
    verdict = "had they stayed" if gained else "had they stayed: moving gains nothing"
    return (
        f"{text} Until it is looked at again the busiest rank has {next_:.2f} times the mean "
        f"rank's load, and would have {unmoved:.2f} times {verdict}."
    )


def tell_move(moved: Mapping[str, Any]) -> str:
    """Describe one move in few words: what it carried, how long it took and what it changed."""
    return (
        f"{moved['num_experts']:,} copies of experts, {num_bytes(moved['num_bytes'])} in "
        f"{seconds(moved['seconds'])}: {moved['imbalance_before']:.2f} to "
        f"{moved['imbalance_after']:.2f}"
    )


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


_QUEUE = 0.5
"""Requests waiting on average above which a queue is mentioned."""
_OFTEN = 0.1
"""Share of the time in which requests wait above which the reason is named."""
_LIMIT_WORDS = {
    "max_sequences": "for one of the {max_sequences}places of a rank (max_sequences)",
    "kv_cache": "for blocks of the KV cache",
    "token_budget": "for a part of a step's {token_budget}tokens (token_budget)",
    "held_back": "since prompts are held back until more have come",
}
"""Words for what requests wait for, by :data:`~simulator.results.tables.ADMISSION_LIMITS`."""
_LIMIT_FACTS = ("max_sequences", "token_budget")
_LATE = 1.02
"""Ratio of a run's duration to that of its arrivals (and a mean request) above which it has fallen
behind."""


def tell_refusals(row: pd.Series, short: str) -> str | None:
    """Count the requests that an engine refuses; ``None`` without one."""
    refused = float(row["num_refused"])
    if not refused > 0:  # nor undefined
        return None
    total = refused + float(row["num_requests"]) + float(row["num_lost"])
    return (
        f"{short} refuses {refused:,.0f} of {total:,.0f} requests, whose prompts are longer than "
        "a step, so that what the others get says nothing of them."
    )


def tell_queue(results: Results, name: str, row: pd.Series, short: str) -> str | None:
    """Describe a queue and what its requests wait for, which says more of headroom than how busy an
    engine is, which is always busy; ``None`` without one.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: name of the deployment in sentences.
    """
    steps, requests = results.steps[name], results.requests[name]
    waiting = float((steps["waiting"] * steps["duration_s"]).sum() / steps["duration_s"].sum())
    if waiting <= _QUEUE:
        return None
    arrivals_s = float(requests["arrival_s"].max())
    facts = results.run["deployments"][name]
    wait = f"on average, {_limits(steps, facts)}"
    kept = f"its KV cache is {percent(row['kv_used_max'])} full at the peak"
    if float(row["duration_s"]) > _LATE * arrivals_s + float(row["e2e_p50_s"]) and arrivals_s > 0:
        late = seconds_text(float(row["duration_s"]) - arrivals_s)
        return (
            f"{short} is overloaded: {count(round(waiting), 'request')} wait {wait}; "
            f"it ends {late} after the last arrival, and {kept}."
        )
    return f"{short} queues at times: {waiting:.1f} requests wait {wait}; {kept}."


def _limits(steps: Columns, facts: dict[str, Any]) -> str:
    """Describe what requests wait for, with its share of the time in which any waits, the longest
    first.
    """
    has_pools = (steps["pool"] != "both").any()  # each has limits of its own
    numbers = {key: "" if has_pools else f"{facts[key]:,} " for key in _LIMIT_FACTS}
    queued = Picked(steps, (steps["waiting"] > 0).to_numpy())
    shares = queued["duration_s"].groupby(queued["limited_by"], observed=True).sum()
    shares = (shares / shares.sum()).sort_values(ascending=False, kind="stable")
    named = [
        f"{_LIMIT_WORDS[str(limit)].format(**numbers)} ({percent(share)} of that time)"
        for limit, share in shares.items()
        if share >= _OFTEN
    ]
    return " and ".join(named)


"""Number of changes that are described one by one."""
_AGAIN = 0.02
"""Share of repeated prompt work above which it is mentioned."""
_ROOM_WAIT = 0.1
"""Ratio of the wait for room to decode to the time to first token above which it is mentioned."""


def tell_changes(results: Results, name: str, row: pd.Series, short: str) -> str | None:
    """Describe the failures and recoveries of replicas, and the fate of the requests that they had;
    ``None`` where nothing changed.

    Args:
        row: the deployment's row of ``summary.csv``.
        short: name of the deployment in sentences.
    """
    changes = results.run["deployments"][name].get("changes") or []
    changes = [change for change in changes if change.get("kind") not in SCALES]
    if not changes:
        return None
    told = _join_hangs(changes)
    named = [tell_change(change, since_s) for change, since_s in told[:_NUM_NAMED]]
    if len(told) > _NUM_NAMED:
        last_s = seconds_text(changes[-1]["at_s"])
        more = len(told) - _NUM_NAMED
        named.append(
            f"another change follows at {last_s}"
            if more == 1
            else f"{more:,} more changes follow until {last_s}"
        )
    retries, lost, total = (
        int(row["num_retries"]),
        int(row["num_lost"]),
        int(row["num_lost"] + row["num_requests"]),
    )
    times = {0: "no request is", 1: "once a request is"}.get(retries, f"{retries:,} times one is")
    shrinks = any(change.get("kind") == "shrinks" for change in changes)
    moved = f"{times} sent {'again' if shrinks else 'to another replica'}"
    of_lost = f"{lost:,} of {total:,} requests {'is' if lost == 1 else 'are'} lost"
    gives_up = "lose" in (results.run["deployments"][name].get("recovery") or "")
    absent = "since no replica is there then"
    reason = f"with the GPUs that had them, or {absent}" if gives_up else absent
    ending = f"{of_lost}, {reason}" if lost else "none is lost"
    share = row.get("availability", np.nan)
    serving = "" if np.isnan(share) else f" Its GPUs serve {100 * share:.4g} % of the time."
    return f"Of {short}, {', '.join(named)}: {moved}, and {ending}.{serving}"


def _join_hangs(changes: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float | None]]:
    """List the changes but for those that others follow which say what became of them: each with
    the time since which its replicas hang.
    """
    found: list[tuple[dict[str, Any], float | None]] = []
    hanging: dict[tuple[int, ...], dict[str, Any]] = {}
    for change in changes:
        replicas = tuple(change["replicas"])
        if change.get("kind") == "hangs":
            hanging.setdefault(replicas, change)
            continue
        hang = hanging.pop(replicas, None)
        found.append((change, float(hang["at_s"]) if hang else None))
    return [*found, *((change, None) for change in hanging.values())]


def tell_change(change: dict[str, Any], since_s: float | None = None) -> str:
    """Describe one change, such as ``replica 1 stops at 30 s with 41 requests``.

    Args:
        since_s: time since which the replicas hang.
    """
    replicas, count = change["replicas"], int(change["num_requests"])
    one = len(replicas) == 1
    pool = "prefill " if change["pool"] == "prefill" else ""
    who = f"{pool}replica {replicas[0]}" if one else f"{len(replicas)} {pool}replicas"
    at, kind = seconds_text(change["at_s"]), change.get("kind")
    if kind == "evacuates":
        return f"{who} {'gets' if one else 'get'} no more requests from {at}"
    if kind == "hangs":
        return f"{who} {'hangs' if one else 'hang'} from {at}"
    if since_s is not None:
        who += f" {'hangs' if one else 'hang'} from {seconds_text(since_s)} and"
    if kind in ("shrinks", "grows"):
        goes, has = ("goes on", "has") if one else ("go on", "have")
        from_s = seconds_text(change["serves_s"])
        if kind == "grows":
            return f"{who} {has} {change['num_gpus']:,} GPUs again from {from_s}"
        lost = f" without {count:,} {'request' if count == 1 else 'requests'}" if count else ""
        return f"{who} {goes} with {change['num_gpus']:,} GPUs from {from_s}{lost}"
    if change["starts"]:
        return f"{who} {'serves' if one else 'serve'} again from {at}"
    had = f" with {count:,} {'request' if count == 1 else 'requests'}" if count else " without work"
    return f"{who} {'stops' if one else 'stop'} at {at}{had}"


def tell_recomputation(row: pd.Series, short: str) -> str | None:
    """Describe repeated work for requests that lost their KV blocks; ``None`` where it is too
    little.
    """
    share = float(row["recomputed_share"])
    if np.isnan(share) or share < _AGAIN or not row["num_preemptions"]:
        return None
    preemptions, retries = int(row["num_preemptions"]), int(row["num_retries"])
    gone, it = (
        (f", and {_times(retries)} with a replica that stopped", "the former")
        if retries
        else ("", "it")
    )
    return (
        f"{short} computes {100 * share:.0f} % of its prompt tokens a second time: requests lost "
        f"their KV blocks {_times(preemptions)} to others that grew{gone}. Fewer places "
        f"(max_sequences), a watermark or more room for the KV cache would prevent {it}."
    )


def tell_room_wait(row: pd.Series, short: str) -> str | None:
    """Describe the wait of prompts for KV blocks or a place in the decode pool; ``None`` where it
    is short.
    """
    wait_s, first_s = float(row["room_wait_mean_s"]), float(row["ttft_mean_s"])
    if not wait_s > _ROOM_WAIT * first_s:
        return None
    return (
        f"Prompts of {short} wait {seconds_text(wait_s)} on average for room in its decode pool, "
        f"{100 * wait_s / first_s:.0f} % of their time to first token: more decode replicas, or "
        "more room in theirs, would help."
    )


def _times(number: int) -> str:
    return f"{number:,} time{'' if number == 1 else 's'}"
