"""The traffic that is planned for: its busiest stretch, a replica's share of it, and the means that the screen goes by."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.traces import RequestTrace
from simulator.traces._check import take_prefixes

_SAMPLED = 256
"""Requests whose lengths stand for all in the screen."""


class Traffic(NamedTuple):
    """Requests to be served, with their rate."""

    trace: RequestTrace
    rate_per_s: float
    num_input: float
    """Mean prompt tokens."""
    num_output: float
    prompts: NDArray[np.int64]
    """A sample's prompt lengths ..."""
    contexts: NDArray[np.int64]
    """... and contexts halfway through the output, each as often as its output is long."""

    @classmethod
    def of(cls, trace: RequestTrace) -> Traffic:
        """Of a trace with arrivals."""
        places = np.linspace(0, trace.num_requests - 1, min(_SAMPLED, trace.num_requests)).astype(np.int64)
        order = np.argsort(trace.num_input + trace.num_output // 2, kind="stable")
        ends = np.cumsum(trace.num_output[order])
        chosen = order[np.searchsorted(ends, (np.arange(_SAMPLED) + 0.5) * ends[-1] / _SAMPLED)]
        duration_s = max(float(trace.arrival_s[-1] - trace.arrival_s[0]), 1e-9)
        return cls(
            trace,
            trace.num_requests / duration_s,
            float(trace.num_input.mean()),
            float(trace.num_output.mean()),
            trace.num_input[order[places]],
            trace.num_input[chosen] + trace.num_output[chosen] // 2,
        )

    @property
    def digest(self) -> str:
        """Of every request: what findings about this traffic are kept under."""
        found = hashlib.sha256()
        trace = self.trace
        for values in (trace.arrival_s, trace.num_input, trace.num_output, trace.prefix_starts, trace.prefix_ids):
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()

    def share(self, parts: int, first: int = 0, most: int | None = None) -> RequestTrace:
        """What one of ``parts`` replicas gets: every n-th request of n, as a balancer that keeps them even would send."""
        chosen = np.arange(first % parts, self.trace.num_requests, parts)[:most]
        return subset(self.trace, chosen)


def subset(trace: RequestTrace, chosen: NDArray[np.int64]) -> RequestTrace:
    """Some requests of a trace, in its order."""
    arrival_s = trace.arrival_s[chosen]
    starts, ids = trace.prefix_starts, trace.prefix_ids
    if trace.prefix_block_tokens:
        starts, ids = take_prefixes(starts, ids, chosen)
    return replace(
        trace,
        arrival_s=arrival_s - (arrival_s[0] if len(arrival_s) else 0.0),
        num_input=trace.num_input[chosen],
        num_output=trace.num_output[chosen],
        prefix_starts=starts,
        prefix_ids=ids,
    )


def busiest(trace: RequestTrace, seconds: float) -> RequestTrace:
    """The stretch of ``seconds`` in which most tokens arrive."""
    arrival_s = trace.arrival_s
    ends = np.searchsorted(arrival_s, arrival_s + seconds, side="right")
    tokens = np.concatenate([[0], np.cumsum(trace.num_input + trace.num_output)])
    best = int(np.argmax(tokens[ends] - tokens[:-1]))
    return subset(trace, np.arange(best, ends[best]))
