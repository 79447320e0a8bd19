"""Read named columns from CSV or JSON lines: fast where the file is right, with the line and the
value where it is not.

Arrow reads the file first. Whatever it refuses is read again line by line, which either finds the
line that is wrong or, where only Arrow minds (``374.0`` as a count of tokens), returns the same
columns.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.workload.traces._arrow import arrow

Kind = Literal["int", "float", "clock", "ids", "text"]
"""``clock``: wall-clock time, given as nanoseconds since 1970. ``ids``: a list of block ids in each
row, given as two columns, ``NAME`` (all ids) and ``NAME_starts`` (``[N + 1]``)."""
Columns = dict[str, NDArray[Any]]
_WORDS = {
    "int": "a whole number",
    "float": "a finite number",
    "clock": "a UTC time such as 2023-11-16 18:15:46.6805900",
    "ids": "a list of whole numbers",
    "text": "a text",
}
_DTYPES: dict[Kind, Any] = {"float": np.float64, "text": object}
_UTC = re.compile(r"(Z|\+00:00)$")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?")
_JSON_BLOCK_BYTES = 1 << 26
"""Longest JSON line that the fast path takes."""


def read_csv(path: Path, data: bytes, kinds: dict[str, Kind]) -> Columns:
    """The columns named in ``kinds``, found by their header.

    Raises:
        UserError: if a row has too few or too many fields, or a value is not of its kind.
    """
    pa, arrow_csv = arrow(), arrow("csv")
    types = {"int": pa.int64(), "float": pa.float64(), "clock": pa.string(), "ids": pa.string()}
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: types[kind] for name, kind in kinds.items()},
                include_columns=list(kinds),
            ),
        )
        if "ids" in kinds.values() or not _is_clean(table, kinds):
            return _slow(path, _csv_rows(path, data), kinds)
        return {
            name: _clock_ns(table.column(name))
            if kind == "clock"
            else table.column(name).to_numpy()
            for name, kind in kinds.items()
        }
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return _slow(path, _csv_rows(path, data), kinds)


def read_json_lines(path: Path, data: bytes, kinds: dict[str, Kind]) -> Columns:
    """The keys named in ``kinds`` of every line.

    Raises:
        UserError: if a line is not a JSON object, lacks a key, or a value is not of its kind.
    """
    if (
        "text" in kinds.values()
    ):  # only small files have texts, and Arrow does not check that they are UTF-8
        return _slow(path, _json_objects(path, data), kinds)
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
        return _slow(path, _json_objects(path, data), kinds)
    if not _is_clean(table, kinds):
        return _slow(path, _json_objects(path, data), kinds)
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
    return columns


def line_of(data: bytes, row: int, header_lines: int) -> int:
    """Line (from 1) of the ``row``-th row (from 0), blank lines not being rows."""
    seen = -1 - header_lines
    for number, line in enumerate(data.split(b"\n"), start=1):
        seen += bool(line.strip())
        if seen == row:
            return number
    return row + 1 + header_lines


def _is_clean(table: Any, kinds: dict[str, Kind]) -> bool:
    for name, kind in kinds.items():
        column = table.column(name)
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
        column = compute.replace_substring_regex(column, pattern=_UTC.pattern, replacement="")
    return (
        np.asarray(compute.cast(column, pa.timestamp("ns")).to_numpy())
        .astype("datetime64[ns]")
        .astype(np.int64)
    )


def _csv_rows(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if not header:
                header = [name.strip() for name in row]
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: has {len(row)} columns, the header "
                    f"has {len(header)}"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None


def _json_objects(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: must hold a JSON object, found a {type(row).__name__}"
            )
        yield number, row


def _slow(
    path: Path, rows: Iterator[tuple[int, dict[str, Any]]], kinds: dict[str, Kind]
) -> Columns:
    found: dict[str, list[Any]] = {name: [] for name in kinds}
    for number, row in rows:
        for name, kind in kinds.items():
            if name not in row:
                raise UserError(f"{path}, line {number}: missing {name}; it must be {_WORDS[kind]}")
            try:
                found[name].append(_value(row[name], kind))
            except (ValueError, TypeError, AttributeError, OverflowError):
                shown = (
                    json.dumps(row[name]) if not isinstance(row[name], str) else f"'{row[name]}'"
                )
                raise UserError(
                    f"{path}, line {number}: {name} must be {_WORDS[kind]}, got {shown[:60]}"
                ) from None
    columns: Columns = {}
    for name, kind in kinds.items():
        if kind == "ids":
            columns[f"{name}_starts"] = np.concatenate(
                ([0], np.cumsum([len(ids) for ids in found[name]], dtype=np.int64))
            )
            columns[name] = _dense([block for ids in found[name] for block in ids])
        else:
            columns[name] = np.array(found[name], _DTYPES.get(kind, np.int64))
    return columns


def _value(value: Any, kind: Kind) -> Any:
    if isinstance(value, bool):
        raise TypeError
    if kind == "text":
        return value + ""
    if kind == "clock":
        moment = _UTC.sub("", value.strip())
        if not _MOMENT.fullmatch(moment):
            raise ValueError
        return int(np.datetime64(moment, "ns").astype(np.int64))
    if kind == "ids":
        return [
            _whole(block) for block in (value.split() if isinstance(value, str) else list(value))
        ]
    if kind == "int":
        return _whole(value)
    number = float(value)
    if not np.isfinite(number):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    if not float(value).is_integer():
        raise ValueError
    return int(value)


def _dense(ids: list[int]) -> NDArray[np.int64]:
    """Ids renumbered from 0 in order of appearance (they may be hashes wider than 64 bits)."""
    number: dict[int, int] = {}
    return np.array([number.setdefault(block, len(number)) for block in ids], np.int64)
