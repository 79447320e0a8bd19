"""Named values of a table, read row by row: slower than Arrow, but with the place and the problem
of each row that cannot be used.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError

Kind = Literal["int", "float", "clock", "time", "ids", "text", "any", "status"]
"""Kinds of values. ``clock``: wall-clock time, given as nanoseconds since 1970. ``time``: as
written in the file, for :func:`~simulator.workload.traces._times.read_times`. ``ids``: a list of
block ids in each row, given as two columns, ``NAME`` (all ids) and ``NAME_starts`` (``[N +
1]``). ``any``: a number or a text, for
:func:`~simulator.workload.traces._tables.read_others`. ``status``: an HTTP status, perhaps with
words; rows of another one than 200 are left out, whatever else they lack."""
LONGEST_TEXT = 64
"""Most characters of a time or a name; in Parquet one text can stand in a million rows."""
Columns = dict[str, NDArray[Any]]
_WORDS = {
    "int": "a whole number",
    "float": "a finite number",
    "clock": "a UTC time such as 2023-11-16 18:15:46.6805900",
    "time": "a time",
    "ids": "a list of whole numbers",
    "text": "a text",
    "any": "a number or a text",
    "status": "an HTTP status",
}
_DTYPES: dict[Kind, Any] = {
    "float": np.float64,
    "text": object,
    "time": object,
    "any": object,
    "status": object,
}
_STATUS = re.compile(r"\s*([1-5]\d\d)(\.0*)?(\s|$)")
UTC = re.compile(r"(Z|\+00:00)$")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?")
_NOTHING = object()
"""Value of what a row does not have."""
_Row = tuple[int, dict[str, object] | str]
"""Line in the file, and its values by name or the reason why there are none."""


@dataclass(frozen=True)
class Rows:
    """Usable rows of a file."""

    columns: Columns
    line: Callable[[int], str]
    """Function that names the ``i``-th row's place in the file: ``"line 7"``."""
    unusable: tuple[str, ...] = ()
    """Message for each row that is left out: its place, and the problem."""
    refused: tuple[str, ...] = ()
    """HTTP status of each row that is left out because it is not 200."""

    def leave_out(self, wrong: NDArray[np.bool_], problem: Callable[[int], str]) -> Rows:
        """Leave out wrong rows, of columns with one entry for each row.

        Args:
            wrong: whether each row is wrong, ``[N]``.
            problem: function that describes the problem of the ``i``-th row.
        """
        kept = np.flatnonzero(~wrong)
        new = tuple(f"{self.line(i)}: {problem(i)}" for i in np.flatnonzero(wrong).tolist())
        return Rows(
            {name: values[kept] for name, values in self.columns.items()},
            lambda row: self.line(int(kept[row])),
            self.unusable + new,
            self.refused,
        )

    def leave_refused(self, name: str) -> Rows:
        """Leave out rows whose HTTP status, in the column of that name, is not 200."""
        codes = [find_refusal(value) for value in self.columns[name].tolist()]
        left = self.leave_out(np.array([code is not None for code in codes], bool), lambda _: "")
        return replace(left, unusable=self.unusable, refused=(*self.refused, *filter(None, codes)))


def find_refusal(status: object) -> str | None:
    """Find the HTTP status of a request that was not served; a value that is none says nothing.

    >>> find_refusal(429), find_refusal("503 Service Unavailable"), find_refusal("200.0")
    ('429', '503', None)
    """
    found = _STATUS.match(str(status))
    return None if found is None or found[1] == "200" else found[1]


def hold_codes(values: Iterable[object]) -> bool:
    """Whether any of these is an HTTP status: columns of that name hold other things, too."""
    return any(_STATUS.match(str(value)) for value in values)


def csv_rows(path: Path, data: bytes) -> Iterator[_Row]:
    """Yield the rows of a CSV file, by the names in its first line.

    Raises:
        UserError: if it is not UTF-8 text, or a quotation does not end.
    """
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
            elif len(row) != len(header):
                yield (
                    reader.line_num,
                    f"has {len(row)} columns, the header has {len(header)}",
                )
            else:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None


def json_objects(data: bytes) -> Iterator[_Row]:
    """Yield the objects of JSON lines."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not valid JSON: {error}"
            continue
        is_object = isinstance(row, dict)
        yield number, row if is_object else f"must hold a JSON object, found a {_type(row)}"


def _type(value: Any) -> str:
    return type(value).__name__


def gather(rows: Iterable[_Row], kinds: dict[str, Kind]) -> Rows:
    """Gather columns of the values named in ``kinds``; a row that lacks one, or has one of another
    kind, is left out.
    """
    found: dict[str, list[Any]] = {name: [] for name in kinds}
    lines: list[int] = []
    unusable: list[str] = []
    refused: list[str] = []
    status = next((name for name, kind in kinds.items() if kind == "status"), None)
    for number, row in rows:
        if status and isinstance(row, dict) and (code := find_refusal(_lookup(row, status))):
            refused.append(code)
            continue
        values = row if isinstance(row, str) else _values(row, kinds)
        if isinstance(values, str):
            unusable.append(f"line {number}: {values}")
            continue
        lines.append(number)
        for name, value in zip(kinds, values, strict=True):
            found[name].append(value)
    columns: Columns = {}
    for name, kind in kinds.items():
        if kind == "ids":
            columns[f"{name}_starts"] = np.concatenate(
                ([0], np.cumsum([len(ids) for ids in found[name]], dtype=np.int64))
            )
            columns[name] = _dense([block for ids in found[name] for block in ids])
        else:
            columns[name] = np.array(found[name], _DTYPES.get(kind, np.int64))
    return Rows(columns, lambda row: f"line {lines[row]}", tuple(unusable), tuple(refused))


def _values(row: dict[str, object], kinds: dict[str, Kind]) -> list[Any] | str:
    """Find the row's values, or the problem of one."""
    values = []
    for name, kind in kinds.items():
        if (value := _lookup(row, name)) is _NOTHING and kind != "status":
            return f"missing {name}; it must be {_WORDS[kind]}"
        try:
            values.append(_value(value, kind))
        except (ValueError, TypeError, AttributeError, OverflowError):
            shown = f"'{value}'" if isinstance(value, str) else json.dumps(value)
            return f"{name} must be {_WORDS[kind]}, got {shown[:60]}"
    return values


def _lookup(row: dict[str, object], name: str) -> Any:
    """Look up a value by its name, or by the names of a table and of the value in it
    (``usage.tokens``).
    """
    if name in row:
        return row[name]
    table, _, key = name.partition(".")
    inner = row.get(table)
    return inner.get(key, _NOTHING) if isinstance(inner, dict) else _NOTHING


def _value(value: Any, kind: Kind) -> Any:
    if kind == "status":
        return value
    if isinstance(value, bool):
        raise TypeError
    if kind == "any":
        return value
    if kind == "text":
        return value + ""
    if kind == "time":
        return str(value).strip() if isinstance(value, str | int | float) else value + ""
    if kind == "clock":
        moment = UTC.sub("", value.strip())
        if not _MOMENT.fullmatch(moment):
            raise ValueError
        return int(np.datetime64(moment, "ns").astype(np.int64))
    if kind == "ids":
        return [
            _whole(block) for block in (value.split() if isinstance(value, str) else list(value))
        ]
    if kind == "int":
        return int(np.int64(_whole(value)))
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
    """Renumber ids from 0 in order of appearance (they may be hashes wider than 64 bits)."""
    number: dict[int, int] = {}
    return np.array([number.setdefault(block, len(number)) for block in ids], np.int64)
