"""Named columns of CSV or Parquet, recognised by the first bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base import parquet
from simulator.base.errors import UserError
from simulator.workload.traces._columns import arrow, find_plain, read_csv
from simulator.workload.traces._rows import (
    LONGEST_TEXT,
    Columns,
    Kind,
    Rows,
    find_refusal,
    hold_codes,
)
from simulator.workload.unpacking import csv_header

_OWN = {
    *("num_input", "num_output", "arrival_s", "domain", "request_id"),
    *("prefix_ids", "prefix_block_tokens"),
}
"""Columns of a table of requests (:mod:`simulator.workload.traces.table`)."""


def column_names(path: Path, head: bytes) -> tuple[str, ...]:
    """Read the names in the header of a CSV file, or in the schema of a Parquet file; none where it
    is neither.

    Args:
        head: beginning of the file, from :func:`~simulator.workload.unpacking.head_of`.
    """
    if not head.startswith(parquet.MAGIC):
        return csv_header(head)
    return parquet.column_names(head, str(path))


def read_table(path: Path, data: bytes, kinds: dict[str, Kind], others: Sequence[str] = ()) -> Rows:
    """Read the columns named in ``kinds``; rows that lack a value are left out.

    Args:
        others: further columns, of any kind, for :func:`read_others`.

    Raises:
        UserError: if the file is damaged, or a column of a Parquet file is of another kind.
    """
    if not data.startswith(parquet.MAGIC):
        return read_csv(path, data, {**kinds, **dict.fromkeys(others, "any")})
    if others:
        plain = parquet.plain_names(data, str(path))
        kinds = {**kinds, **{name: "any" for name in others if name in plain}}
    table = parquet.read_columns(data, list(kinds), str(path))
    missing = {
        name: table.column(name).is_null().to_numpy()
        for name, kind in kinds.items()
        if kind not in ("text", "any", "status")
    }
    is_whole = ~np.any(list(missing.values()), axis=0)
    refused: list[str] = []
    for name in (name for name, kind in kinds.items() if kind == "status"):
        codes = [find_refusal(value) for value in table.column(name).to_pylist()]
        is_served = np.array([code is None for code in codes], bool)
        refused = [code for code in codes if code]
        for lacks in missing.values():
            lacks &= is_served
        is_whole &= is_served
    unusable = tuple(
        f"row {row + 1}: {next(name for name in missing if missing[name][row])} has no value"
        for row in np.flatnonzero(np.any(list(missing.values()), axis=0)).tolist()
    )
    kept = np.flatnonzero(is_whole)
    if unusable or refused:
        table = table.filter(arrow().array(is_whole))
    columns: Columns = {}
    for name, kind in kinds.items():
        columns |= _column(path, name, kind, table.column(name))
    return Rows(columns, lambda row: f"row {kept[row] + 1}", unusable, tuple(refused))


def list_others(names: Sequence[str], known: Collection[str]) -> list[str]:
    """List the columns that are attributes of requests: with a name of their own, and none that a
    table of requests has a meaning for.
    """
    return [
        name for name in names if name and names.count(name) == 1 and name not in {*known, *_OWN}
    ]


def tell_left_out(names: Sequence[str], attributes: Columns) -> tuple[str, ...]:
    """Note on the columns that were to be attributes of requests and hold something else."""
    left_out = [name for name in names if name not in attributes]
    said = f"columns left out, which hold no numbers or short texts: {', '.join(left_out)}"
    return (said,) if left_out else ()


def read_others(rows: Rows, names: Sequence[str]) -> Columns:
    """Read attributes: whole numbers where all are, numbers where the others are empty (NaN), else
    texts, of which columns with long ones are left out.
    """
    found: Columns = {}
    for name in names:
        values = rows.columns.get(name, np.zeros(0, np.object_))
        if values.dtype == object:
            texts = ["" if value is None else str(value).strip() for value in values.tolist()]
            if max(map(len, texts), default=LONGEST_TEXT + 1) > LONGEST_TEXT or not any(texts):
                continue
            values = np.array(texts, dtype=np.object_)
            for kind in (np.int64, np.float64):
                with suppress(ValueError, OverflowError):
                    values = np.array([text or "nan" for text in texts]).astype(kind)
                    break
        found[name] = values
    return found


def _column(path: Path, name: str, kind: Kind, column: Any) -> Columns:
    if kind == "time":
        return {name: _times(path, name, column)}
    pa = arrow()
    if kind == "status" and hold_codes(column.to_pylist()):
        return {}
    if kind in ("any", "status"):
        values = find_plain(column)
        return {} if values is None else {name: values}
    if kind == "text":
        texts = _short_texts(path, name, column, f"texts of at most {LONGEST_TEXT} characters")
        return {name: np.asarray(texts.fill_null("").to_numpy())}
    types = {"int": pa.int64(), "float": pa.float64(), "ids": pa.list_(pa.int64())}
    try:
        column = column.cast(types[kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{path}: column {name} must "
            f"hold {'lists of whole' if kind == 'ids' else kind} numbers: {error}"
        ) from None
    if kind != "ids":
        return {name: column.to_numpy()}
    ids = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)) for chunk in column.chunks]
    counts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))
    return {
        name: np.concatenate([np.zeros(0, np.int64), *ids]),
        f"{name}_starts": np.concatenate([[0], ends]).astype(np.int64),
    }


def _times(path: Path, name: str, column: Any) -> NDArray[Any]:
    """Read numbers, moments (``datetime64``) or texts."""
    types = arrow("types")
    if types.is_dictionary(column.type):
        column = _short_texts(path, name, column, "times")
    elif types.is_date(column.type):
        column = column.cast(arrow().timestamp("ms"))
    return np.asarray(column.to_numpy())


def _short_texts(path: Path, name: str, column: Any, wanted: str) -> Any:
    """Read a column as texts; long ones that many rows share would fill the memory."""
    pa, different = arrow(), column
    if arrow("types").is_dictionary(column.type):
        different = pa.concat_arrays([chunk.dictionary for chunk in column.chunks])
    try:
        lengths = arrow("compute").utf8_length(different.cast(pa.string()))
        if (arrow("compute").max(lengths).as_py() or 0) > LONGEST_TEXT:
            raise UserError(f"{path}: column {name} holds long texts, and must hold {wanted}")
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path}: column {name} must hold {wanted}: {error}") from None
