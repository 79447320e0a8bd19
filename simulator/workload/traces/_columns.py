"""Named columns of CSV or JSON lines, read fast where the file is right, with the line and the
value where it is not.

Arrow reads the file first. Whatever it refuses is read again line by line, which either finds the
lines that are wrong or, where only Arrow minds (``374.0`` as a count of tokens), returns the same
columns.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.workload.traces._rows import (
    LONGEST_TEXT,
    UTC,
    Columns,
    Kind,
    Rows,
    csv_rows,
    gather,
    json_objects,
)

_JSON_BLOCK_BYTES = 1 << 26
"""Longest JSON line that the fast path takes."""


def read_csv(path: Path, data: bytes, kinds: dict[str, Kind]) -> Rows:
    """Read the columns named in ``kinds``, found by their header. A row that has too few or too
    many fields, or a value of another kind, is left out.

    Raises:
        UserError: if the file is not a table of UTF-8 text.
    """
    pa, arrow_csv = arrow(), arrow("csv")
    types = {"int": pa.int64(), "float": pa.float64()}
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            convert_options=arrow_csv.ConvertOptions(
                column_types={
                    name: types.get(kind, pa.string())
                    for name, kind in kinds.items()
                    if kind != "any"
                },
                include_columns=list(kinds),
            ),
        )
        if "ids" in kinds.values() or not _is_clean(table, kinds):
            return gather(csv_rows(path, data), kinds)
        columns = {
            name: _clock_ns(table.column(name))
            if kind == "clock"
            else table.column(name).to_numpy()
            for name, kind in kinds.items()
            if kind != "any"
        }
        plain = {name: table.column(name) for name, kind in kinds.items() if kind == "any"}
        found = {name: find_plain(column) for name, column in plain.items()}
        columns |= {name: values for name, values in found.items() if values is not None}
        return Rows(columns, lambda row: f"line {_line_of(data, row, 1)}")
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return gather(csv_rows(path, data), kinds)


def find_plain(column: Any) -> NDArray[Any] | None:
    """Values of an Arrow column as ``int64``, ``float64`` or short texts; ``None`` of another
    kind.
    """
    pa, types, compute = arrow(), arrow("types"), arrow("compute")
    is_coded = types.is_dictionary(column.type)
    inner = column.type.value_type if is_coded else column.type
    is_whole = types.is_integer(inner) or types.is_boolean(inner)
    try:
        if types.is_string(inner) or types.is_large_string(inner):
            coded = [chunk.dictionary for chunk in column.chunks] if is_coded else []
            different = pa.chunked_array(coded, inner) if is_coded else column
            longest = compute.max(compute.utf8_length(different)).as_py() or 0
            is_short = longest <= LONGEST_TEXT
            return np.asarray(column.cast(inner).fill_null("").to_numpy()) if is_short else None
        if is_whole and not column.null_count:
            return np.asarray(column.cast(inner).cast(pa.int64()).to_numpy())
        if is_whole or types.is_floating(inner) or types.is_decimal(inner):
            return np.asarray(column.cast(inner).cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    return None


def read_json_lines(data: bytes, kinds: dict[str, Kind]) -> Rows:
    """Read the keys named in ``kinds`` of every line; lines that are not JSON objects with these
    keys are left out.
    """
    # Arrow does not check that texts are UTF-8, and takes a time for a number or a text, not both.
    if {"text", "time", "status"} & set(kinds.values()):
        return gather(json_objects(data), kinds)
    pa, arrow_json = arrow(), arrow("json")
    types = {
        "int": pa.int64(),
        "float": pa.float64(),
        "clock": pa.string(),
        "ids": pa.list_(pa.int64()),
    }
    try:
        table = arrow_json.read_json(
            pa.BufferReader(data),
            read_options=arrow_json.ReadOptions(block_size=min(_JSON_BLOCK_BYTES, len(data) + 1)),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=pa.schema([(name, types[kind]) for name, kind in kinds.items()]),
                unexpected_field_behavior="ignore",
            ),
        )
    except pa.ArrowInvalid:
        return gather(json_objects(data), kinds)
    if not _is_clean(table, kinds):
        return gather(json_objects(data), kinds)
    columns: Columns = {}
    for name, kind in kinds.items():
        column = table.column(name)
        if kind == "ids":
            lengths = np.concatenate(
                [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
                or [np.zeros(0, np.int64)]
            )
            columns[name] = np.concatenate(
                [chunk.flatten().to_numpy() for chunk in column.chunks] or [np.zeros(0, np.int64)]
            )
            columns[f"{name}_starts"] = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        else:
            columns[name] = column.to_numpy()
    return Rows(columns, lambda row: f"line {_line_of(data, row, 0)}")


def _line_of(data: bytes, row: int, header_lines: int) -> int:
    """Line (from 1) of the ``row``-th row (from 0); blank lines are not rows."""
    seen = -1 - header_lines
    for number, line in enumerate(data.split(b"\n"), start=1):
        seen += bool(line.strip())
        if seen == row:
            return number
    return row + 1 + header_lines


def _is_clean(table: Any, kinds: dict[str, Kind]) -> bool:
    for name, kind in kinds.items():
        column = table.column(name)
        if kind == "any":
            continue
        if column.null_count or (kind == "float" and not np.isfinite(column.to_numpy()).all()):
            return False
        if kind == "ids" and any(chunk.flatten().null_count for chunk in column.chunks):
            return False
    return True


def _clock_ns(column: Any) -> NDArray[np.int64]:
    pa, compute = arrow(), arrow("compute")
    if len(column) and column[0].as_py().endswith(
        ("Z", "+00:00")
    ):  # Azure 2024 names the zone, 2023 does not
        column = compute.replace_substring_regex(column, pattern=UTC.pattern, replacement="")
    return (
        np.asarray(compute.cast(column, pa.timestamp("ns")).to_numpy())
        .astype("datetime64[ns]")
        .astype(np.int64)
    )


# Readers of Arrow, imported only when a file is read: commands that read none start faster.


def arrow(module: str | None = None) -> Any:
    """Import ``pyarrow``, or a module of it, untyped: its exports are not declared as a strict type
    check asks.
    """
    return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
