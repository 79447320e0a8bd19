"""The traffic that is planned for: requests that are judged, those served before them, and the
means that the screen goes by.

A cluster that starts empty looks faster than it is, so the requests that are judged come behind a
lead-in that is served and not judged, as long as a request stays where the targets are just kept.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.workload import WorkloadSpec
from simulator.workload.traces import RequestTrace, take_requests

LEAST_STAYS = 4.0
"""Stays that the judged requests' arrivals must span to show a steady state; with fewer, most of
the time is start and end."""
_SAMPLED = 256
"""Requests whose lengths stand for all in the screen."""


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
    workload: WorkloadSpec | None = None
    """The workload of just these requests; ``None`` where no keys of one cut them out."""

    @classmethod
    def measure(cls, trace: RequestTrace, lead: int = 0, stay_s: float = 0.0) -> Traffic:
        """Measure the rate and the lengths of a trace with arrivals."""
        lead = int(np.searchsorted(trace.arrival_s, trace.arrival_s[lead]))
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
    def judge_from_s(self) -> float:
        """Arrival of the first request that is judged, seconds since the first one."""
        return float(self.trace.arrival_s[self.lead])

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
        for name, values in sorted(trace.attributes.items()):
            is_text = values.dtype == object
            found.update(repr((name, values.tolist() if is_text else None)).encode())
            found.update(b"" if is_text else np.ascontiguousarray(values).tobytes())
        return found.hexdigest()

    def busiest(self, num_requests: int, stays: float = 0.0) -> Traffic:
        """The stretch of about so many requests in which most tokens arrive, behind a lead-in;
        itself where it has no more.

        Args:
            stays: that the stretch lasts at least, whatever the number of requests.
        """
        num_requests = max(num_requests, math.ceil(stays * self.stay_s * self.rate_per_s))
        if self.num_requests <= num_requests:
            return self
        arrival_s = self.trace.arrival_s[self.lead :]
        seconds = self.duration_s * num_requests / self.num_requests
        first, last = busiest(arrival_s, self._tokens[self.lead :], seconds)
        # Long requests may be few, and the last of a stretch comes before its seconds are over.
        until_s, count = arrival_s[first] + stays * self.stay_s, len(arrival_s)
        last = max(last, first + num_requests, int(np.searchsorted(arrival_s, until_s)) + 1)
        last = min(last, count)
        from_s = arrival_s[last - 1] - stays * self.stay_s
        begin = int(np.searchsorted(arrival_s, from_s, side="right")) - 1
        first = max(min(first, last - num_requests, begin), 0)
        return led(self.trace, self.lead + first, self.lead + last, self.stay_s)

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
    """Some requests of a trace, in its order, all judged: their times begin anew."""
    taken = take_requests(trace, chosen)
    return replace(taken, arrival_s=taken.arrival_s - taken.arrival_s[:1], judge_from_s=0.0)


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
