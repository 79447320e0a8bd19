"""The traffic that is planned for, from a question's workload."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.formats import seconds
from simulator.config.capacity import Question
from simulator.config.workload import WorkloadSpec
from simulator.scenario.question import load_open_requests
from simulator.workload.requests import asked_rate_per_s, load_requests, source_arrivals_s
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
        return 0.0 if context is None else float((self._tokens > context).mean())

    @property
    def is_steady(self) -> bool:
        """Whether they arrive for long enough that requests leave as fast as they come."""
        return self.duration_s >= LEAST_STAYS * self.stay_s * (1 - 1e-9)

    @property
    def digest(self) -> str:
        """Digest of every request, under which evaluations about this traffic are stored."""
        trace = self.trace
        found = hashlib.sha256(repr((self.lead, self.stay_s, trace.prefix_block_tokens)).encode())
        lengths = trace.num_input, trace.num_output
        for values in (trace.arrival_s, *lengths, trace.prefix_starts, trace.prefix_ids):
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


_STAYS = 8.0
"""Stays that generated requests last for behind their lead-in: queues near the most that can be
carried build up slowly."""
_BEYOND, _ON_STRETCH = 30, 100
"""Requests that must lie beyond the highest percentile that is asked for: of generated requests at
the least; and on the stretch that is looked at, whose count then has a sampling error of 10 %."""
_LEVELS = {"mean": 0.5, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_TOKEN_S, _FIRST_TOKEN_S = 0.05, 1.0
"""Taken where no target says how long a token, or the first one, may take. Assumed: about the pace
of a fast reader."""


def lasting(question: Question, folder: Path) -> tuple[Question, int | None]:
    """The question with so many requests of a generated workload that a steady state shows; and how
    many it had, if fewer.

    Recorded requests are what they are, as is a stretch that ``peak_s`` asks for.

    Raises:
        UserError: as :func:`traffic_of`.
    """
    if question.peak_s is not None or not is_generated(question.workload):
        return question, None
    trace = load_open_requests(question, folder, "plan [workload]")
    stay_s = stay(question, trace)
    duration_s = max(float(trace.arrival_s[-1] - trace.arrival_s[0]), 1e-9)
    rate = (trace.num_requests - 1) / duration_s
    needed = math.ceil(max(_STAYS * stay_s * rate, count_needed(question)) + stay_s * rate)
    if trace.num_requests >= needed:
        return question, None
    workload = question.workload.model_copy(update={"num_requests": needed, "duration_s": None})
    return question.model_copy(update={"workload": workload}), trace.num_requests


def count_needed(question: Question) -> int:
    """Requests that must be judged, so that enough lie beyond the highest percentile."""
    return math.ceil(_BEYOND / _share_beyond(question))


def _share_beyond(question: Question) -> float:
    """Share of the requests that may lie beyond the highest percentile that is asked for."""
    limits = question.targets.latencies.values()
    levels = [1 - _LEVELS[level] for given in limits for level in given]
    if question.targets.attainment is not None:
        levels.append(1 - question.targets.attainment)
    return max(min(levels, default=0.1), 0.001)


def traffic_of(question: Question, folder: Path) -> Traffic:
    """The requests that are planned for.

    Raises:
        UserError: if the workload is wrong, or is a closed loop, whose rate follows from the
            deployment, or ``peak_s`` is too short.
    """
    trace = load_open_requests(question, folder, "plan [workload]")
    stay_s = stay(question, trace)
    if question.peak_s is not None:
        return _cut_peak(question, folder, trace, stay_s)
    lead = trace.num_lead_in
    if not lead and trace.arrival_s[-1] >= LEAST_STAYS * stay_s:
        lead = min(int(np.searchsorted(trace.arrival_s, stay_s)), trace.num_requests - 2)
    return Traffic.measure(trace, lead, stay_s)._replace(workload=question.workload)


def check_offered(question: Question, traffic: Traffic, where: str = "plan") -> None:
    """Refuse a target of tokens that the requests do not ask for.

    Raises:
        UserError: with what they ask for.
    """
    wanted, offered = question.targets.output_tokens_per_s, traffic.rate_per_s * traffic.num_output
    if wanted is not None and wanted > offered:
        raise UserError(
            f"{where} [targets]: output_tokens_per_s = {wanted:g} is more than the requests ask "
            f"for, {offered:,.0f} a second; raise workload.rate_scale, or leave it out"
        )


def _cut_peak(question: Question, folder: Path, trace: RequestTrace, stay_s: float) -> Traffic:
    """The busiest ``peak_s`` behind a stay's lead-in: just as a run loads them, where start and
    number cut them out.
    """
    if question.workload.judge_from_s:
        raise UserError("plan: peak_s says which requests are judged; leave judge_from_s out")
    tokens = trace.num_input + trace.num_output
    first, last = busiest(trace.arrival_s, tokens, question.peak_s or 0.0)
    peak = led(trace, first, last, stay_s)
    if peak.num_requests < 2 or peak.duration_s <= 0:
        raise UserError(
            f"plan: peak_s = {question.peak_s:g} holds "
            f"{'one request' if peak.num_requests < 2 else 'requests of one moment only'}, "
            "which is no rate to plan for; ask for a longer stretch"
        )
    cut = _cut_workload(question, folder, last - peak.trace.num_requests, last)
    loaded = load_requests(cut, folder, question.seed)
    if not _is_alike(loaded, peak.trace):
        return peak
    if peak.num_requests == trace.num_requests:
        lasts = f"its requests arrive within {seconds(peak.duration_s)}, and all are judged"
        note = f"peak_s = {question.peak_s:g} is longer than it; {lasts}"
        loaded = replace(loaded, notes=(*loaded.notes, note))
    return Traffic.measure(loaded, peak.lead, stay_s)._replace(workload=cut)


def _cut_workload(question: Question, folder: Path, first: int, last: int) -> WorkloadSpec:
    """The workload with its requests ``first`` to ``last`` (left out) alone."""
    asked = question.workload
    source_s = source_arrivals_s(asked, folder, question.seed)
    begin = int(np.searchsorted(source_s, asked.start_s))
    first, last = begin + first, begin + last
    start_s = float(source_s[first])
    changes: dict[str, float | None] = {
        "start_s": start_s,
        "num_requests": last - first,
        "duration_s": None,
    }
    if is_generated(asked):
        # Lengths are drawn for all requests at once, so all must still be drawn.
        changes["num_requests"] = len(source_s) - first
        if last < len(source_s):
            half_s = float(source_s[last - 1] + source_s[last]) / 2
            changes["duration_s"] = (half_s - start_s) / asked.rate_scale
    return asked.model_copy(update=changes)


def _is_alike(loaded: RequestTrace, wanted: RequestTrace) -> bool:
    """Whether requests are the same but for rounding."""
    pairs = [
        (loaded.num_input, wanted.num_input),
        (loaded.num_output, wanted.num_output),
        (loaded.prefix_starts, wanted.prefix_starts),
        (loaded.domain, wanted.domain),
    ]
    for name, values in wanted.attributes.items():  # as texts, in which NaN equals NaN
        pairs.append((loaded.attributes.get(name, values[:0]).astype(str), values.astype(str)))
    return all(np.array_equal(*pair) for pair in pairs) and np.allclose(
        loaded.arrival_s, wanted.arrival_s, rtol=0, atol=1e-6
    )


def find_stretch(question: Question, traffic: Traffic) -> Traffic:
    """The busiest stretch of the traffic, with requests enough beyond the highest percentile and
    as long as a steady state takes; all of it where it has no more.
    """
    return traffic.busiest(math.ceil(_ON_STRETCH / _share_beyond(question)), LEAST_STAYS)


def asked_rate(question: Question, folder: Path) -> float | None:
    """Requests per second that are asked for; ``None`` where they are recorded, or where the
    busiest stretch is planned for, whose rate is its own.
    """
    if question.peak_s is not None:
        return None
    return asked_rate_per_s(question.workload, folder, "plan [workload]")


def is_generated(workload: WorkloadSpec) -> bool:
    """Whether a workload's requests are drawn, so that it can have more than it says."""
    requests = workload.requests
    if not isinstance(requests, str):
        return isinstance(requests, dict)
    return requests.endswith(".toml") or requests in available_files("workloads/requests")


def stay(question: Question, trace: RequestTrace) -> float:
    """Seconds that a request of mean length stays where the targets are just kept: the pace that
    was asked for.

    Args:
        trace: the requests, whose mean number of output tokens counts.
    """
    ttft, tpot, e2e = (  # the limits nearest to the medians
        next(iter(limits.values()), None) for limits in question.targets.latencies.values()
    )
    slo = question.workload.slo
    ttft, tpot, e2e = ttft or slo.ttft_s, tpot or slo.tpot_s, e2e or slo.e2e_s
    by_tokens = (ttft or _FIRST_TOKEN_S) + (tpot or _TOKEN_S) * float(trace.num_output.mean())
    if e2e is None:
        return by_tokens
    return e2e if tpot is None else min(e2e, by_tokens)
