"""The traffic that is planned for: requests that are judged, those served before them, and the
means that the screen goes by.

A cluster that starts empty looks faster than it is, so the requests that are judged come behind a
lead-in that is served and not judged, as long as a request stays where the targets are just kept.
Traffic that is raised lasts as long as before: the same requests come again, so that queues have as
long to build up.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.workload.traces import RequestTrace, take_requests

LEAST_STAYS = 4.0
"""Stays that the judged requests' arrivals must span to show a steady state; with fewer, most of
the time is start and end."""
_SAMPLED = 256
"""Requests whose lengths stand for all in the screen."""
_LEAST_REQUESTS = 200
"""Requests that are judged of traffic that is thinned out."""


class Traffic(NamedTuple):
    """Requests to be served, with their rate."""

    trace: RequestTrace
    lead: int
    """First requests that are served and not judged; means and samples are of the others."""
    stay_s: float
    """Seconds that a mean request stays where the targets are just kept."""
    rate_per_s: float
    num_input: float
    """Mean prompt tokens."""
    num_output: float
    """Mean output tokens."""
    prompts: NDArray[np.int64]
    """Prompt lengths of a sample."""
    contexts: NDArray[np.int64]
    """Contexts of a sample halfway through the output, each as often as its output is long."""

    @classmethod
    def measure(cls, trace: RequestTrace, lead: int = 0, stay_s: float = 0.0) -> Traffic:
        """Measure the rate and the lengths of a trace with arrivals."""
        num_input, num_output = trace.num_input[lead:], trace.num_output[lead:]
        count = len(num_input)
        places = np.linspace(0, count - 1, min(_SAMPLED, count)).astype(np.int64)
        order = np.argsort(num_input + num_output // 2, kind="stable")
        ends = np.cumsum(num_output[order])
        chosen = order[np.searchsorted(ends, (np.arange(_SAMPLED) + 0.5) * ends[-1] / _SAMPLED)]
        duration_s = max(float(trace.arrival_s[-1] - trace.arrival_s[lead]), 1e-9)
        return cls(
            trace,
            lead,
            stay_s,
            count / duration_s,
            float(num_input.mean()),
            float(num_output.mean()),
            num_input[order[places]],
            num_input[chosen] + num_output[chosen] // 2,
        )

    @property
    def num_requests(self) -> int:
        """Requests that are judged."""
        return self.trace.num_requests - self.lead

    @property
    def duration_s(self) -> float:
        """Seconds in which the judged requests arrive."""
        return float(self.trace.arrival_s[-1] - self.trace.arrival_s[self.lead])

    def share_beyond(self, context: int | None) -> float:
        """Share of the requests that are longer than a model's context, output included."""
        return (
            0.0
            if context is None
            else float((self.trace.num_input + self.trace.num_output > context).mean())
        )

    @property
    def is_steady(self) -> bool:
        """Whether they arrive for long enough that requests leave as fast as they come."""
        return self.duration_s >= LEAST_STAYS * self.stay_s * (1 - 1e-9)

    @property
    def digest(self) -> str:
        """Digest of every request, under which evaluations about this traffic are stored."""
        trace = self.trace
        found = hashlib.sha256(repr((self.lead, self.stay_s, trace.prefix_block_tokens)).encode())
        for values in (
            trace.arrival_s,
            trace.num_input,
            trace.num_output,
            trace.prefix_starts,
            trace.prefix_ids,
        ):
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()

    def share(self, parts: int) -> tuple[RequestTrace, int]:
        """Requests of one of ``parts`` replicas, every n-th of n, as a balancer that keeps them
        even would send; and its lead.
        """
        first = self.lead % parts  # so that the first request that is judged is among them
        chosen = np.arange(first, self.trace.num_requests, parts)
        return subset(self.trace, chosen), int(np.searchsorted(chosen, self.lead))

    def busiest(self, num_requests: int, stays: float = 0.0) -> Traffic:
        """The stretch of about so many requests in which most tokens arrive, behind a lead-in;
        itself where it has no more.

        Args:
            stays: that the stretch lasts at least, whatever the number of requests.
        """
        num_requests = max(num_requests, math.ceil(stays * self.stay_s * self.rate_per_s))
        if self.num_requests <= num_requests:
            return self
        seconds = self.duration_s * num_requests / self.num_requests
        first, last = busiest(self.trace.arrival_s[self.lead :], self._tokens[self.lead :], seconds)
        return led(self.trace, self.lead + first, self.lead + last, self.stay_s)

    def at_rate(self, factor: float) -> Traffic:
        """Requests coming ``factor`` times as fast, for as long as these: repeated, or the last of
        them.
        """
        if factor == 1.0:
            return self
        lead_s = float(self.trace.arrival_s[self.lead])
        if factor < 1.0:
            count = min(
                self.num_requests, max(_LEAST_REQUESTS, math.ceil(self.num_requests * factor))
            )
            trace, judged = self.trace, self.trace.num_requests - count
        else:
            gap_s = self.duration_s / max(self.num_requests - 1, 1)
            times = (
                math.ceil(factor * (lead_s + self.duration_s) / max(self.duration_s + gap_s, 1e-9))
                + 1
            )
            trace = _repeat(self.trace, self.lead, times, self.duration_s + gap_s)
            judged = trace.num_requests - round(self.num_requests * factor)
        arrival_s = trace.arrival_s - trace.arrival_s[judged]
        arrival_s = arrival_s * (
            (trace.num_requests - judged)
            / max(float(arrival_s[-1]), 1e-9)
            / (factor * self.rate_per_s)
        )
        first = int(np.searchsorted(arrival_s, -lead_s * (1 + 1e-9)))
        changed = subset(replace(trace, arrival_s=arrival_s), np.arange(first, trace.num_requests))
        return Traffic.measure(changed, judged - first, self.stay_s)

    @property
    def _tokens(self) -> NDArray[np.int64]:
        return self.trace.num_input + self.trace.num_output


def led(trace: RequestTrace, first: int, last: int, stay_s: float) -> Traffic:
    """Requests ``first`` to ``last`` (left out) of a trace, behind those that came during a stay
    before them.
    """
    begin = int(np.searchsorted(trace.arrival_s, trace.arrival_s[first] - stay_s))
    return Traffic.measure(subset(trace, np.arange(begin, last)), first - begin, stay_s)


def subset(trace: RequestTrace, chosen: NDArray[np.int64]) -> RequestTrace:
    """Some requests of a trace, in its order."""
    taken = take_requests(trace, chosen)
    return replace(taken, arrival_s=taken.arrival_s - taken.arrival_s[:1])


def busiest(
    arrival_s: NDArray[np.float64], num_tokens: NDArray[np.int64], seconds: float
) -> tuple[int, int]:
    """The first request, and the one behind the last, of the stretch of ``seconds`` in which most
    tokens arrive.
    """
    ends = np.searchsorted(arrival_s, arrival_s + seconds, side="right")
    tokens = np.concatenate([[0], np.cumsum(num_tokens)])
    best = int(np.argmax(tokens[ends] - tokens[:-1]))
    return best, int(ends[best])


def _repeat(trace: RequestTrace, lead: int, times: int, period_s: float) -> RequestTrace:
    """The trace with all behind its lead-in ``times`` over; prefixes are shared within each time,
    not between them.
    """
    order = np.concatenate([np.arange(lead), np.tile(np.arange(lead, trace.num_requests), times)])
    which = np.concatenate(
        [np.zeros(lead, np.int64), np.repeat(np.arange(times), trace.num_requests - lead)]
    )
    taken = take_requests(trace, order)
    ids = taken.prefix_ids
    if trace.prefix_block_tokens:
        time_of = np.repeat(which, np.diff(taken.prefix_starts))
        ids = ids + time_of * (int(ids.max(initial=0)) + 1)
    return replace(taken, arrival_s=taken.arrival_s + which * period_s, prefix_ids=ids)
