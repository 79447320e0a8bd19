"""The workload of a scenario: which requests, how many of them, how fast, and what latency they are
promised.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from simulator.base.frozen import Frozen, Policy
from simulator.base.quantities import Duration, Factor, Requests, Seconds, Thickening


class SLO(Frozen):
    """Latency targets of one request, in seconds; an absent one is not promised."""

    ttft_s: Duration | None = None
    """Arrival to first output token, queueing included."""
    tpot_s: Duration | None = None
    """(end-to-end - TTFT) / (output tokens - 1)."""
    e2e_s: Duration | None = None
    """Arrival to last token."""


class GeneratorSpec(Frozen):
    """Requests made up from an arrival process and a length distribution."""

    arrivals: Policy
    """A ``{ kind = "...", ... }`` table of the arrivals family."""
    lengths: Policy
    """A ``{ kind = "...", ... }`` table of the lengths family."""
    num_requests: Requests | None = None
    """How many, unless the workload says so; give this or ``duration_s`` there or here."""
    duration_s: Duration | None = None
    """For how long, unless the workload says so."""


class NamedWorkloadSpec(GeneratorSpec):
    """A file of ``workloads/requests``: a generator with its story."""

    title: str = ""
    notes: str = ""
    """What it reproduces, and what it does not."""
    licence: str = ""
    """Of the data behind the numbers, with the attribution that it asks for."""
    sources: dict[str, str] = Field(default={})
    """Where the numbers come from."""


class WorkloadSpec(Frozen):
    """The ``[workload]`` table of a scenario."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    requests: str | dict[str, Any]
    """A shipped name, a path relative to the scenario's folder, or a :class:`GeneratorSpec`
    table."""
    start_s: Seconds = 0.0
    """Seconds of the source to leave out at its beginning, in its own time."""
    num_requests: Requests | None = None
    """Take the first so many requests."""
    duration_s: Duration | None = None
    """Take the requests of the first so many seconds, in the time of the run (after
    ``rate_scale``)."""
    rate_scale: Factor = 1.0
    """Arrival times are divided by this: 2.0 is the same requests at twice the rate."""
    thickening: Thickening = 1.0
    """Requests for each recorded one, on the recording's own time axis: 10.0 makes a day
    sampled at 10 % whole, with the day's shape. Drawn from ``seed``, with the lengths of recorded
    requests near in time; before ``start_s``, ``num_requests`` and ``rate_scale`` are applied."""
    strict: bool = False
    """Refuse a trace in which rows have to be left out or sorted, rather than count them in a
    note."""
    prompt_scale: Factor = 1.0
    """What if: prompts are so many times as long; what they have in common grows with them."""
    arrivals: Policy | None = None
    """An arrival process instead of the source's own times; needed where the source has lengths
    only."""
    slo: SLO = SLO()
