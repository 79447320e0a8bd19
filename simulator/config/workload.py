"""The workload of a scenario: which requests, how many of them, how fast, and what latency they are
promised.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from simulator.base.frozen import Frozen, Policy
from simulator.base.kinds import PolicyOf, TableOf
from simulator.base.quantities import (
    Duration,
    Factor,
    Label,
    Ratio,
    Requests,
    Seconds,
    Sources,
    Thickening,
    Tokens,
)


class SLO(Frozen):
    """Latency targets of one request, in seconds; an absent one is not promised."""

    ttft_s: Duration | None = None
    """Limit on a request's time to first token, queueing included, seconds; absent = none."""
    tpot_s: Duration | None = None
    """Limit on a request's time per output token, seconds: (end-to-end - time to first token) /
    (output tokens - 1); absent = none."""
    e2e_s: Duration | None = None
    """Limit on the time from a request's arrival to its last token, seconds; absent = none."""

    @property
    def is_set(self) -> bool:
        """Whether any limit is promised."""
        return any((self.ttft_s, self.tpot_s, self.e2e_s))


class GeneratorSpec(Frozen):
    """Requests made up from an arrival process and a length distribution."""

    arrivals: Annotated[Policy, PolicyOf("arrivals")]
    """Arrival process."""
    lengths: Annotated[Policy, PolicyOf("lengths")]
    """Distribution of prompt and output lengths."""
    num_requests: Requests | None = None
    """Number of requests, unless the workload says so; give this or ``duration_s`` there or
    here."""
    duration_s: Duration | None = None
    """Seconds of traffic, unless the workload says so."""


class NamedWorkloadSpec(GeneratorSpec):
    """A file of ``workloads/requests``: a generator with its story."""

    title: Label = ""
    """Name of the workload, for reports."""
    notes: Label = ""
    """Remarks in free text: the traffic that it reproduces, and what it leaves out."""
    licence: Label = ""
    """Licence of the data behind the numbers, with the attribution that it asks for."""
    sources: Sources = Field(default={})
    """Source of each group of numbers."""


class DomainMix(Frozen):
    """Shares of the kinds of text from some time on."""

    at_s: Seconds = 0.0
    """Time in the run, seconds; the mix before the first one is the first."""
    shares: dict[str, Ratio] = Field(min_length=1, examples=[{"chat": 0.7, "code": 0.3}])
    """Share of the requests of each kind of text; they are scaled to a sum of 1."""

    @field_validator("shares")
    @classmethod
    def _check_sum(cls, shares: dict[str, float]) -> dict[str, float]:
        if not sum(shares.values()):
            raise ValueError("shares must not all be 0")
        if not all(name.strip() for name in shares):
            raise ValueError("a kind of text in shares needs a name, and one has none")
        return shares


class DomainsSpec(Frozen):
    """Kinds of text of requests, drawn by shares that may change with the time of arrival."""

    mixes: Annotated[list[DomainMix], Field(min_length=1)] | str
    """Mixes of kinds of text, in order of time; or a CSV or Parquet file, relative to the
    scenario's folder, with a column ``at_s`` in seconds and one of shares for each kind of
    text."""
    changes: Literal["step", "linear"] = "step"
    """Change from one mix to the next: at once, or evenly over the time between them."""
    period_s: Duration | None = None
    """Seconds after which the mixes begin anew, such as 86,400 for a day; absent = never."""

    @model_validator(mode="after")
    def _check_order(self) -> DomainsSpec:
        if isinstance(self.mixes, str):  # checked when it has been read
            return self
        times = [mix.at_s for mix in self.mixes]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("mixes must be in order of at_s, each later than the one before")
        if self.period_s is not None and times[-1] >= self.period_s:
            raise ValueError(
                f"the last mix (at_s = {times[-1]:g}) must be before period_s ({self.period_s:g})"
            )
        return self


class LogColumns(Frozen):
    """Names of a log's columns, by what they hold; an absent one is found by the names that logs
    use.
    """

    arrival: str | None = None
    """Column of the times of arrival: ISO 8601, or a number of seconds, ms, us or ns."""
    input: str | None = None
    """Column of the prompts' tokens."""
    output: str | None = None
    """Column of the outputs' tokens."""


class LogSpec(Frozen):
    """A log of requests whose columns have names of their own."""

    file: str
    """Path of the log, relative to the scenario's folder: CSV, Parquet or JSON lines."""
    columns: LogColumns = LogColumns()
    """Names of its columns; a table in JSON lines is named with a dot: ``usage.prompt``."""

    @field_validator("file")
    @classmethod
    def _is_no_generator(cls, file: str) -> str:
        if file.endswith(".toml"):
            raise ValueError(f'generates requests, and has no columns; write requests = "{file}"')
        return file


def _name_form(given: object) -> str:
    """Form in which a workload says its requests."""
    if isinstance(given, LogSpec) or (isinstance(given, dict) and "file" in given):
        return "log"
    return "generated" if isinstance(given, dict) else "name"


class WorkloadSpec(Frozen):
    """The ``[workload]`` table of a scenario."""

    requests: Annotated[
        Annotated[str, Tag("name")]
        | Annotated[LogSpec, Tag("log")]
        | Annotated[dict[str, object], TableOf(GeneratorSpec), Tag("generated")],
        Discriminator(_name_form),
    ]
    """Requests: a shipped name, the path of a trace relative to the scenario's folder, a log's
    ``file`` and ``columns``, or a table with ``arrivals`` and ``lengths``."""
    start_s: Seconds = 0.0
    """Seconds of the source to leave out at its beginning, in its own time."""
    num_requests: Requests | None = None
    """Number of requests to take from the beginning; absent = all."""
    duration_s: Duration | None = None
    """Seconds of requests to take from the beginning, in the time of the run (after
    ``rate_scale``); absent = all."""
    rate_scale: Factor = 1.0
    """Factor on the request rate: arrival times are divided by it, so 2.0 is the same requests at
    twice the rate."""
    judge_from_s: Seconds = 0.0
    """Seconds of the run before which requests are served and not judged: the end of the lead-in,
    in which an empty cluster fills."""
    thickening: Thickening = 1.0
    """Number of requests for each recorded one, on the recording's own time axis: 10.0 makes a day
    sampled at 10 % whole, with the day's shape. Drawn from ``seed``, with the lengths of recorded
    requests near in time; before ``start_s``, ``num_requests`` and ``rate_scale`` are applied."""
    strict: bool = False
    """Whether a trace in which rows have to be left out or sorted is refused, rather than noted."""
    prompt_scale: Factor = 1.0
    """Factor on the length of prompts, to see what longer ones would do; shared prefixes grow with
    them."""
    arrivals: Annotated[Policy, PolicyOf("arrivals")] | None = None
    """Arrival process instead of the source's own times; needed where the source has lengths
    only."""
    domains: DomainsSpec | None = None
    """Kinds of text of the requests, which load different experts where the routing tells them
    apart; absent = those that the source names, if any."""
    priorities: Annotated[list[Ratio], Field(min_length=1, examples=[[0.2, 0.8]])] | None = None
    """Shares of the requests of priority 0, 1 and so on, which are drawn; they are scaled to a sum
    of 1. The least is first where ``order`` is by priority. Absent = the column ``priority`` of the
    trace, if it has one."""
    max_tokens: Tokens | None = None
    """Most output tokens that each request asks for, at least its output: TensorRT-LLM reserves KV
    blocks for as many, SGLang's admission assumes them up to 4,096. Absent = the column
    ``max_tokens`` of the trace, or else each output's true length, which no engine knows."""
    slo: SLO = SLO()
    """Latency targets of each request."""
