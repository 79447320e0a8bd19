"""Request rate of a trace by hour."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.workload.traces import RequestTrace

_HOUR_S = 3600.0
"""Seconds of an hour."""
_MOST_HOURS = 24 * 366
"""Most hours that are listed: a year; a longer trace has its times in another unit."""


def describe_hours(trace: RequestTrace) -> dict[str, Any]:
    """Count requests by hour and find the busiest hour, for people.

    Keys: ``requests_by_hour``, one number for each hour from the first request on, the last of
    which is not whole; ``busiest_hour``: ``{start_s, num_requests, rate_per_s}`` of the 3,600 s
    from a request on that have the most. Empty without arrival times.
    """
    if not trace.has_arrivals or trace.concurrency is not None or not trace.num_requests:
        return {}
    since_s = trace.arrival_s - trace.arrival_s[0]
    hours = np.arange(min(int(since_s[-1] // _HOUR_S) + 1, _MOST_HOURS) + 1)
    by_hour = np.diff(np.searchsorted(since_s, hours * _HOUR_S))
    counts = np.searchsorted(since_s, since_s + _HOUR_S) - np.arange(len(since_s))
    first = int(np.argmax(counts))
    lasts_s = min(_HOUR_S, float(since_s[-1]))
    return {
        "requests_by_hour": by_hour.tolist(),
        "busiest_hour": {
            "start_s": float(since_s[first]),
            "num_requests": int(counts[first]),
            "rate_per_s": float(counts[first] / lasts_s) if lasts_s else None,
        },
    }
