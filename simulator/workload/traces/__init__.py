"""Request traces: arrival times and numbers of tokens. One file format in a file; a format is
recognised by content, not by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import Attributes


@dataclass(frozen=True)
class PartOf:
    """Facts about a whole trace that some of its requests need, to be served as they are there."""

    numbers: NDArray[np.int64]
    """Indices of the requests in the whole trace; sorted."""
    longest_tokens: int
    """Prompt and output tokens of the longest request of the whole."""


LEAST_ROUNDS = 3
"""Requests over concurrency from which the first round of a closed loop is left out."""


@dataclass(frozen=True)
class RequestTrace:
    """Requests in order of arrival. Arrays have one entry for each request."""

    arrival_s: NDArray[np.float64]
    """Seconds since the first request; sorted. All zero where the source has lengths only, and in
    a closed loop."""
    num_input: NDArray[np.int64]
    """Prompt tokens, at least 1."""
    num_output: NDArray[np.int64]
    """Generated tokens, at least 1."""
    provenance: str
    """Source of the trace, for the report."""
    has_arrivals: bool = True
    """False where the source lists lengths only, so that arrivals must come from a generator."""
    concurrency: int | None = None
    """Closed loop: at most this many requests in flight; each next one starts when one ends.
    ``None`` = open loop."""
    start: Literal["at_once", "spread"] = "at_once"
    """Times at which the clients of a closed loop send their first requests."""
    send_s: float = 0.0
    """Seconds between two requests that the clients of a closed loop send."""
    judge_ramp: bool = True
    """Whether the first round of a closed loop is judged, a request of each client."""
    prefix_block_tokens: int = 0
    """Tokens of one prefix block; 0 where the trace has no prefix blocks."""
    prefix_starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """``[N + 1]``: blocks of request ``i`` are ``prefix_ids[prefix_starts[i]:prefix_starts[i +
    1]]``; empty without blocks."""
    prefix_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Block ids numbered densely from 0; equal ids hold equal tokens behind an equal prefix."""
    domains: tuple[str, ...] = ()
    """Kinds of text that the source tells apart; empty where it tells none."""
    domain: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Index of each request's kind of text, ``[N]``, -1 for none; empty without any."""
    request_ids: NDArray[np.object_] = field(default_factory=lambda: np.zeros(0, np.object_))
    """Identifier of each request in its source, ``[N]``; empty where the source has none."""
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Further columns of the source by name, ``[N]``, such as ``priority``: numbers, or texts.
    Orders of waiting requests and balancers see them."""
    notes: tuple[str, ...] = ()
    """Notes on rows that a reader dropped, repaired or assumed, for the user ("7 rows of 0 tokens
    left out")."""
    repairs: tuple[str, ...] = ()
    """Defects of the file that were repaired, beyond those its source is known for: rows left out,
    rows sorted. Each names its place ("line 3: ..."), and is refused where the user asks for a file
    without any."""
    part_of: PartOf | None = None
    """Whole trace that these requests are a part of, if they are."""
    judge_from_s: float = 0.0
    """End of the lead-in, in the time of the arrivals: requests that arrive before are served and
    not judged."""

    def find_attributes(self, number: int) -> dict[str, float | str]:
        """Find the attributes of one request, by its index."""
        return Attributes((name, values[number]) for name, values in self.attributes.items())

    @property
    def num_requests(self) -> int:
        """Requests in the trace."""
        return len(self.arrival_s)

    @property
    def num_lead_in(self) -> int:
        """Requests that are served and not judged: those that arrive before ``judge_from_s``, or
        the first round of a closed loop that has at least three.
        """
        if self.concurrency is None:
            return int(np.searchsorted(self.arrival_s, self.judge_from_s))
        has_ramp = 1 < self.concurrency <= self.num_requests // LEAST_ROUNDS
        return self.concurrency if has_ramp and not self.judge_ramp else 0


class TraceFormat(Protocol):
    """Interface of the files in this folder: a frozen pydantic model without fields."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the file (or folder, then ``head`` is empty) is of this format, judged by its
        first 64 KiB (unpacked).
        """
        ...

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace. Rows that cannot be used are left out, rows out of order sorted.

        Args:
            data: the file's content, unpacked; empty of a folder.

        Raises:
            UserError: if most rows are broken (with the first), the file is damaged, or there is no
                request.
        """
        ...


def cut_trace(trace: RequestTrace, first: int, end: int) -> RequestTrace:
    """Cut the requests from ``first`` up to ``end``, whose prefix blocks keep their numbers;
    without copies.
    """
    has_prefixes, part = trace.prefix_block_tokens > 0, trace.part_of
    return replace(
        trace,
        arrival_s=trace.arrival_s[first:end],
        num_input=trace.num_input[first:end],
        num_output=trace.num_output[first:end],
        domain=trace.domain[first:end],
        request_ids=trace.request_ids[first:end],
        attributes={name: values[first:end] for name, values in trace.attributes.items()},
        prefix_starts=trace.prefix_starts[first : end + 1] if has_prefixes else trace.prefix_starts,
        part_of=part and replace(part, numbers=part.numbers[first:end]),
    )


def take_requests(trace: RequestTrace, rows: NDArray[np.int64]) -> RequestTrace:
    """Take the requests of the given rows, in that order, with all their data; their arrivals and
    their indices in a whole trace are unchanged.
    """
    starts, ids, part = trace.prefix_starts, trace.prefix_ids, trace.part_of
    if trace.prefix_block_tokens:
        starts, ids = take_prefixes(starts, ids, rows)
    return replace(
        trace,
        arrival_s=trace.arrival_s[rows],
        num_input=trace.num_input[rows],
        num_output=trace.num_output[rows],
        domain=trace.domain[rows] if len(trace.domain) else trace.domain,
        request_ids=trace.request_ids[rows] if len(trace.request_ids) else trace.request_ids,
        attributes={name: values[rows] for name, values in trace.attributes.items()},
        prefix_starts=starts,
        prefix_ids=ids,
        part_of=part and replace(part, numbers=part.numbers[rows]),
    )


def pick_requests(trace: RequestTrace, rows: NDArray[np.int64]) -> RequestTrace:
    """Pick some requests of a whole trace in its order, which are served as they are there."""
    longest = int((trace.num_input + trace.num_output).max())
    return replace(take_requests(trace, rows), part_of=PartOf(rows, longest))


def take_prefixes(
    starts: NDArray[np.int64], ids: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take the prefix blocks of the given rows, in that order, numbered densely from 0."""
    lengths = np.diff(starts)[rows]
    new_starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    offsets = np.arange(new_starts[-1]) - np.repeat(new_starts[:-1] - starts[:-1][rows], lengths)
    _, dense = np.unique(ids[offsets], return_inverse=True)
    return new_starts, dense.astype(np.int64)
