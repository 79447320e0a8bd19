"""From columns to a :class:`RequestTrace`, with every row checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.workload.traces import RequestTrace, take_prefixes


@dataclass(frozen=True, kw_only=True)
class RawRequests:
    """What a reader took from a file, and what its columns are called there (for messages)."""

    path: Path
    title: str
    """What the format is called, for the provenance."""
    line: Callable[[int], str]
    """Where the ``i``-th row stands in the file: ``"line 7"``."""
    time_s: NDArray[np.float64] | None
    """Seconds from any origin; ``None`` where the source has lengths only."""
    num_input: NDArray[np.int64]
    num_output: NDArray[np.int64]
    names: tuple[str, str, str]
    """Column names of time, input and output."""
    drops_empty: bool = False
    """Whether rows of 0 tokens are known in this source and left out with a note, rather than
    refused."""
    sorts: bool = False
    """Whether rows out of order are sorted with a note (measured starts), rather than refused (a
    trace to replay)."""
    prefix_block_tokens: int = 0
    prefix_starts: NDArray[np.int64] | None = None
    prefix_ids: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


def checked(raw: RawRequests) -> RequestTrace:
    """The trace, its times counted from the first request and its prefix blocks numbered from 0.

    Raises:
        UserError: if there is no request, a length is below 1 (0 may be left out), a time is not
            finite or goes back.
    """
    notes = list(raw.notes)
    time_s = np.zeros(len(raw.num_input)) if raw.time_s is None else raw.time_s
    _refuse_rows(
        raw, raw.names[0], time_s, ~np.isfinite(time_s), "must be a finite number of seconds"
    )
    keep = np.ones(len(time_s), bool)
    for name, lengths in zip(raw.names[1:], (raw.num_input, raw.num_output), strict=True):
        lowest = 0 if raw.drops_empty else 1
        _refuse_rows(raw, name, lengths, lengths < lowest, f"must be at least {lowest} tokens")
        keep &= lengths > 0
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(keep)} rows with 0 tokens left out")
    order = np.flatnonzero(keep)
    if not len(order):
        raise UserError(f"{raw.path}: holds no request; a request trace has at least one")
    back = np.flatnonzero(np.diff(time_s[order]) < 0)
    if len(back) and raw.sorts:
        order = order[np.argsort(time_s[order], kind="stable")]
        notes.append(f"{len(back)} rows were out of order by {raw.names[0]} and have been sorted")
    elif len(back):
        row, before = order[back[0] + 1], order[back[0]]
        earlier_s = time_s[before] - time_s[row]
        raise UserError(
            f"{raw.path}, {raw.line(int(row))}: {raw.names[0]} lies {earlier_s:.6g} s before that "
            "of the row above; sort the rows by it"
        )
    starts, ids = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if raw.prefix_starts is not None and raw.prefix_ids is not None:
        starts, ids = take_prefixes(raw.prefix_starts, raw.prefix_ids, order)
    arrival_s = time_s[order]
    return RequestTrace(
        arrival_s=arrival_s - arrival_s[0],
        num_input=raw.num_input[order].astype(np.int64),
        num_output=raw.num_output[order].astype(np.int64),
        provenance=f"{raw.title} ({raw.path.name})",
        has_arrivals=raw.time_s is not None,
        prefix_block_tokens=raw.prefix_block_tokens if len(starts) else 0,
        prefix_starts=starts,
        prefix_ids=ids,
        notes=tuple(notes),
    )


def _refuse_rows(
    raw: RawRequests, name: str, values: NDArray[Any], wrong: NDArray[np.bool_], rule: str
) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"{raw.path}, {raw.line(row)}: {name} {rule}, got {values[row]}")
