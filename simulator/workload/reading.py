"""Files of traces, and of mixes of lengths."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.base import parquet, plugins
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.quantities import MOST_REQUESTS, MOST_TOKENS, YEAR_S, mistaken_unit
from simulator.base.reading import read_bytes, refuse_damage
from simulator.config.workload import DomainsSpec, LogColumns
from simulator.workload.traces import RequestTrace, TraceFormat
from simulator.workload.traces.request_log import list_columns, read_log, suggest
from simulator.workload.unpacking import csv_header, head_of, json_keys, read_unpacked

ANY_LOG = "request_log"
"""Format that is asked when no other fits: the others know the units of their source."""


def read_trace(
    path: Path, *, columns: LogColumns | None = None, strict: bool = False
) -> RequestTrace:
    """Read a request trace of any known format.

    Args:
        columns: names of a log's columns; a file of which any is given is read as a log.
        strict: refuse a file in which rows have to be left out or sorted.

    Raises:
        UserError: if the file is missing, of no known format or of several, or if its format finds
            it wrong, or it cannot be served (:func:`~simulator.workload.reading.check_bounds`).
    """
    path = Path(path)
    data = read_unpacked(path)
    with refuse_damage(path, "a request trace"):
        if columns is not None and any(columns.model_dump().values()):
            trace = read_log(path, data, columns)
        else:
            trace = _format_of(path, head_of(data)).read(path, data)
    if strict and trace.repairs:
        raise UserError(f"{path}, {trace.repairs[0]}")
    return check_bounds(trace, str(path))


def _format_of(path: Path, head: bytes) -> TraceFormat:
    formats: dict[str, TraceFormat] = {
        kind: plugins.build("traces", {"kind": kind}, str(path))
        for kind in plugins.available("traces")
    }
    any_log = formats.pop(ANY_LOG)
    fitting = [kind for kind, reader in formats.items() if reader.recognises(path, head)]
    if len(fitting) > 1:
        raise UserError(f"{path}: could be any of {', '.join(fitting)}; {_describe(path, head)}")
    if fitting:
        return formats[fitting[0]]
    if any_log.recognises(path, head):
        return any_log
    names = [] if path.is_dir() else list_columns(path, head)
    remedy = (
        suggest(path, names)
        if names[1:]
        else "a log is CSV, Parquet or JSON lines with columns of arrival, prompt and output "
        f"tokens; other formats are {', '.join(formats)}"
    )
    raise UserError(
        f"{path}: not a request trace of a known format; {_describe(path, head)}; {remedy}"
    )


def _describe(path: Path, head: bytes) -> str:
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        return f"it is a folder of {len(names)} entries ({_some(names)})"
    keys = json_keys(head)
    if keys:
        return f"it holds JSON with the keys {_some(sorted(keys))}"
    if head.startswith(parquet.MAGIC):
        held = [repr(name[:30]) for name in parquet.column_names(head, str(path))]
        return f"it is a Parquet file of the columns {_some(held)}"
    columns = csv_header(head)
    if columns:
        return f"its first line reads as the columns {_some([repr(name[:30]) for name in columns])}"
    return f"it begins with the bytes {head[:8]!r}"


def _some(words: list[str]) -> str:
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "") if words else "none"


_Table = tuple[list[str], Sequence[Sequence[object]]]
"""Names and rows of a table."""
_TIME = "at_s"
_MOST_BYTES = 1 << 24
"""Largest file: a mix a second for a month, of a few kinds of text, is half of it."""


def read_mixes(spec: DomainsSpec, folder: Path) -> DomainsSpec:
    """Replace the name of a file of mixes by what is in it; a spec without one stays as it is.

    Args:
        folder: the scenario's folder, which the name is relative to.

    Raises:
        UserError: if the file is missing or damaged, or its mixes make no sense.
    """
    if not isinstance(spec.mixes, str):
        return spec
    path = folder / os.path.expanduser(spec.mixes)
    data = read_bytes(path, _MOST_BYTES)
    with refuse_damage(path, "a table of mixes"):
        names, rows = (_read_parquet if data.startswith(parquet.MAGIC) else _read_csv)(path, data)
    if _TIME not in names or len(set(names)) < max(len(names), 2):
        raise UserError(
            f"{path}: a table of mixes has a column {_TIME} and one of shares for each kind of "
            f"text, each once; found are {', '.join(names) or 'none'}"
        )
    mixes = [_read_row(path, number, names, row) for number, row in enumerate(rows, 1)]
    return validate(DomainsSpec, {**spec.model_dump(), "mixes": mixes}, str(path))


def _read_csv(path: Path, data: bytes) -> _Table:
    """Read the names and the rows of texts."""
    lines = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    return [name.strip() for name in lines[0]] if lines else [], lines[1:]


def _read_parquet(path: Path, data: bytes) -> _Table:
    """Read the names and the rows of numbers."""
    names = list(parquet.column_names(data, str(path)))
    columns = parquet.read_columns(data, names, str(path)).to_pydict()
    return names, [list(row) for row in zip(*(columns[name] for name in names), strict=True)]


def _read_row(
    path: Path, number: int, names: Sequence[str], row: Sequence[object]
) -> dict[str, object]:
    """Read a mix; an empty share is 0."""
    if len(row) != len(names):
        raise UserError(f"{path}, row {number}: has {len(row)} values, for {len(names)} columns")
    found = {}
    for name, value in zip(names, row, strict=True):
        try:
            found[name] = float(str(value).strip() or 0) if value is not None else 0.0
        except ValueError:
            raise UserError(
                f"{path}, row {number}: {name} must be a number, not {value!r}"
            ) from None
    return {_TIME: found.pop(_TIME), "shares": found}


# Bounds on requests that can be served in virtual time: spans and lengths that arrays and whole
# numbers hold.


def check_bounds(trace: RequestTrace, where: str) -> RequestTrace:
    """Check that a trace can be served, and return it.

    Args:
        where: its file, or the section that generates it, for errors.

    Raises:
        UserError: if there are more than 50 million requests, they span more than a year, or one is
            longer than any model's context.
    """
    if trace.num_requests > MOST_REQUESTS:
        raise UserError(
            f"{where}: holds {trace.num_requests:,} requests; at most {MOST_REQUESTS:,} are served"
        )
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0]) if trace.num_requests else 0.0
    if not span_s <= YEAR_S:
        raise UserError(
            f"{where}: arrival times span {span_s:,.6g} seconds, must span at most {YEAR_S:,.0f}; "
            + mistaken_unit("seconds", is_high=True)
        )
    _check_lengths(trace.num_input, f"{where}: prompts")
    _check_lengths(trace.num_output, f"{where}: outputs")
    return trace


def _check_lengths(lengths: NDArray[np.int64], what: str) -> None:
    longest = int(lengths.max(initial=1))
    if longest > MOST_TOKENS:
        raise UserError(
            f"{what} must have at most {MOST_TOKENS:,} tokens, the longest has {longest:,}; "
            + mistaken_unit("tokens", is_high=True)
        )
