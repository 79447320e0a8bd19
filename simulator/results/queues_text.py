"""Sentences on requests that wait for a step, and what they wait for."""

from __future__ import annotations

from typing import Any

import pandas as pd

from simulator.base.columns import Columns, Picked
from simulator.results.folder import Results
from simulator.results.formats import count, percent, seconds_text

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
