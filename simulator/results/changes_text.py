"""Sentences on replicas that lost GPUs and got them back, on repeated work, and on prompts that
waited for room to decode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from simulator.results.folder import Results
from simulator.results.formats import seconds_text
from simulator.results.scaling_text import SCALES

_NUM_NAMED = 3
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
