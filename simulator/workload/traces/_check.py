"""Conversion of columns to a :class:`RequestTrace`, with every row checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.workload.traces import RequestTrace, take_prefixes
from simulator.workload.traces._rows import LONGEST_TEXT, Rows

_MOST_UNUSABLE = 0.5
"""Largest share of rows that may be left out; a file with more probably has another layout."""
_MOST_TOKENS = 2**40
"""Tokens of a prompt or an answer above which a number is a time or an id in the wrong column."""


@dataclass(frozen=True)
class RawRequests:
    """Columns that a reader took from a file, and their names there (for messages)."""

    path: Path
    title: str
    """Name of the format, for the provenance."""
    rows: Rows
    """Usable rows of the file, with columns of prompt and output tokens."""
    names: tuple[str, ...]
    """Column names of time, input and output."""
    time_s: NDArray[np.float64] | None
    """Seconds from any origin; ``None`` where the source has lengths only."""
    drops_empty: bool = False
    """Whether rows of 0 tokens are normal in this source (failed requests)."""
    sorts: bool = False
    """Whether rows out of order are normal in this source (measured starts)."""
    prefix_block_tokens: int = 0
    prefix_starts: NDArray[np.int64] | None = None
    prefix_ids: NDArray[np.int64] | None = None
    domain: NDArray[Any] | None = None
    """Kind of text of each request, by name; empty for none."""
    request_ids: NDArray[Any] | None = None
    """Identifier of each request."""
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Further columns by name."""
    notes: tuple[str, ...] = ()

    @property
    def num_input(self) -> NDArray[np.int64]:
        """Prompt tokens."""
        return self.rows.columns[self.names[1]]

    @property
    def num_output(self) -> NDArray[np.int64]:
        """Output tokens."""
        return self.rows.columns[self.names[2]]

    def make_trace(self) -> RequestTrace:
        """Make the trace, with times counted from the first request and prefix blocks numbered from
        0.

        Rows whose time is not finite or that have fewer than 1 token are left out, rows out of
        order sorted, and both counted in the notes; in :attr:`RequestTrace.repairs` too, unless
        they are normal in the source.

        Raises:
            UserError: if there is no request, or most rows cannot be used.
        """
        time_s = np.zeros(len(self.num_input)) if self.time_s is None else self.time_s
        notes: list[str] = list(self.notes)
        repairs: list[str] = []
        order = _in_order(self, time_s, _usable_rows(self, time_s, notes, repairs), notes, repairs)
        starts, ids = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if self.prefix_starts is not None and self.prefix_ids is not None:
            starts, ids = take_prefixes(self.prefix_starts, self.prefix_ids, order)
        domains, domain = (), np.zeros(0, np.int64)
        if self.domain is not None:
            given = self.domain[order].astype(str)
            if max(map(len, given.tolist()), default=0) > LONGEST_TEXT:
                raise UserError(
                    f"{self.path}: domain must be a text of at most {LONGEST_TEXT} characters"
                )
            names = np.unique(given[given != ""])
            domain = np.where(given == "", -1, np.searchsorted(names, given))
            domains = tuple(names.tolist())
        arrival_s = time_s[order]
        return RequestTrace(
            arrival_s=arrival_s - arrival_s[0],
            num_input=self.num_input[order].astype(np.int64),
            num_output=self.num_output[order].astype(np.int64),
            provenance=f"{self.title} ({self.path.name})",
            has_arrivals=self.time_s is not None,
            prefix_block_tokens=self.prefix_block_tokens if len(starts) else 0,
            prefix_starts=starts,
            prefix_ids=ids,
            domains=domains,
            domain=domain.astype(np.int64),
            request_ids=np.zeros(0, np.object_)
            if self.request_ids is None
            else self.request_ids[order].astype(np.object_),
            attributes={name: values[order] for name, values in self.attributes.items()},
            notes=tuple(notes),
            repairs=tuple(repairs),
        )


def _usable_rows(
    raw: RawRequests, time_s: NDArray[np.float64], notes: list[str], repairs: list[str]
) -> NDArray[np.int64]:
    """Numbers of the usable rows; rows left out are added to the notes and repairs."""
    wrong, problems = _unusable(raw, time_s)
    num_rows = len(raw.rows.unusable) + len(time_s)
    num_wrong = len(raw.rows.unusable) + int(wrong.sum())
    if num_wrong:
        also = f"; {num_wrong} of {num_rows} rows cannot be used" if num_wrong > 1 else ""
        repairs.append(problems[0] + also)
        if num_wrong > _MOST_UNUSABLE * num_rows:
            raise UserError(f"{raw.path}, {repairs[0]}")
        notes.append(f"{num_wrong} of {num_rows} rows left out; the first: {problems[0]}")
    empty = ~wrong & ((raw.num_input == 0) | (raw.num_output == 0))
    if empty.any():
        notes.append(f"{int(empty.sum())} of {num_rows} rows with 0 tokens left out")
    rows = np.flatnonzero(~wrong & ~empty)
    if not len(rows):
        raise UserError(f"{raw.path}: holds no request; a request trace has at least one")
    return rows


def _unusable(raw: RawRequests, time_s: NDArray[np.float64]) -> tuple[NDArray[np.bool_], list[str]]:
    """Whether each row read cannot be used, and the first problem of each kind, including those of
    rows not read.
    """
    lowest = 0 if raw.drops_empty else 1
    checks: list[tuple[str, NDArray[Any], NDArray[np.bool_], str]] = [
        (raw.names[0], time_s, ~np.isfinite(time_s), "must be a finite number of seconds")
    ]
    for name, lengths in zip(raw.names[1:], (raw.num_input, raw.num_output), strict=True):
        checks += [
            (name, lengths, lengths < lowest, f"must be at least {lowest} tokens"),
            (name, lengths, lengths > _MOST_TOKENS, f"must be at most {_MOST_TOKENS} tokens"),
        ]
    problems = list(raw.rows.unusable[:1])
    for name, values, wrong, rule in checks:
        if wrong.any():
            row = int(np.argmax(wrong))
            problems.append(f"{raw.rows.line(row)}: {name} {rule}, got {values[row]}")
    return np.any([wrong for _, _, wrong, _ in checks], axis=0), problems


def _in_order(
    raw: RawRequests,
    time_s: NDArray[np.float64],
    rows: NDArray[np.int64],
    notes: list[str],
    repairs: list[str],
) -> NDArray[np.int64]:
    """Sort the rows by time; rows out of order are added to the notes and repairs."""
    back = np.flatnonzero(np.diff(time_s[rows]) < 0)
    if not len(back):
        return rows
    notes.append(f"{len(back)} rows were out of order by {raw.names[0]} and have been sorted")
    if not raw.sorts:
        before, row = int(rows[back[0]]), int(rows[back[0] + 1])
        repairs.append(
            f"{raw.rows.line(row)}: {raw.names[0]} lies {time_s[before] - time_s[row]:.6g} s "
            "before that of the row above; sort the rows by it"
        )
    return rows[np.argsort(time_s[rows], kind="stable")]
