"""The project's own table, Parquet or CSV: ``num_input``, ``num_output`` and, where known,
``arrival_s`` and prefix blocks.

Prefix blocks are two columns: ``prefix_ids`` (a list of ids in Parquet, ids separated by spaces in
CSV) and ``prefix_block_tokens`` (the same number in every row).
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._arrow import arrow
from simulator.workload.traces._check import RawRequests, checked
from simulator.workload.traces._columns import Columns, Kind, line_of, read_csv
from simulator.workload.unpacking import csv_header, unpacked

_PARQUET = b"PAR1"
_LENGTHS: dict[str, Kind] = {"num_input": "int", "num_output": "int"}
_PREFIXES: dict[str, Kind] = {"prefix_block_tokens": "int", "prefix_ids": "ids"}


class Table(Frozen):
    """What :func:`write_table` writes, and what a user's own script can easily write."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the columns of lengths are there, in a CSV header or a Parquet schema."""
        return set(_LENGTHS) <= set(
            _parquet_names(path) if head.startswith(_PARQUET) else csv_header(head)
        )

    def read(self, path: Path) -> RequestTrace:
        """Read the whole table."""
        data = unpacked(path)
        is_parquet = data.startswith(_PARQUET)
        names = _parquet_names(path) if is_parquet else csv_header(data[:4096])
        kinds = dict(_LENGTHS)
        if "arrival_s" in names:
            kinds["arrival_s"] = "float"
        if "prefix_ids" in names:
            if "prefix_block_tokens" not in names:
                raise UserError(
                    f"{path}: prefix_ids need a column prefix_block_tokens, the tokens of one block"
                )
            kinds |= _PREFIXES
        columns = _read_parquet(path, kinds) if is_parquet else read_csv(path, data, kinds)
        blocks = columns.get("prefix_block_tokens", np.zeros(0, np.int64))
        if len(blocks) and (blocks[0] < 1 or (blocks != blocks[0]).any()):
            raise UserError(
                f"{path}: prefix_block_tokens must be the same number, at least 1, in every row"
            )
        return checked(
            RawRequests(
                path=path,
                title="request table",
                line=lambda row: (
                    f"row {row + 1}" if is_parquet else f"line {line_of(data, row, 1)}"
                ),
                time_s=columns.get("arrival_s"),
                num_input=columns["num_input"],
                num_output=columns["num_output"],
                names=("arrival_s", "num_input", "num_output"),
                prefix_block_tokens=int(blocks[0]) if len(blocks) else 0,
                prefix_starts=columns.get("prefix_ids_starts"),
                prefix_ids=columns.get("prefix_ids"),
            )
        )


def write_table(trace: RequestTrace, path: Path) -> None:
    """Write a trace as Parquet, or as CSV where the name ends in ``.csv``; :class:`Table` reads it
    back unchanged.
    """
    columns: dict[str, Any] = {"arrival_s": trace.arrival_s} if trace.has_arrivals else {}
    columns |= {"num_input": trace.num_input, "num_output": trace.num_output}
    if trace.prefix_block_tokens:
        columns["prefix_block_tokens"] = np.full(trace.num_requests, trace.prefix_block_tokens)
        columns["prefix_ids"] = [
            ids.tolist() for ids in np.split(trace.prefix_ids, trace.prefix_starts[1:-1])
        ]
    if path.suffix == ".csv":
        rows = zip(
            *(
                values if isinstance(values, list) else values.tolist()
                for values in columns.values()
            ),
            strict=True,
        )
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(
                [" ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in row]
                for row in rows
            )
        return
    pa, parquet = arrow(), arrow("parquet")
    parquet.write_table(pa.table(columns), path)


def _parquet_names(path: Path) -> tuple[str, ...]:
    pa, parquet = arrow(), arrow("parquet")
    try:
        return tuple(parquet.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from None


def _read_parquet(path: Path, kinds: dict[str, Kind]) -> Columns:
    pa, parquet = arrow(), arrow("parquet")
    types = {"int": pa.int64(), "float": pa.float64(), "ids": pa.list_(pa.int64())}
    try:
        table = parquet.read_table(path, columns=list(kinds))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from None
    columns: Columns = {}
    for name, kind in kinds.items():
        column = table.column(name)
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy()))
            raise UserError(f"{path}, row {row + 1}: {name} has no value")
        try:
            column = column.cast(types[kind])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"{path}: column {name} must "
                f"hold {'lists of whole' if kind == 'ids' else kind} numbers: {error}"
            ) from None
        if kind == "ids":
            ids = [
                np.asarray(chunk.flatten().to_numpy(zero_copy_only=False))
                for chunk in column.chunks
            ]
            counts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
            columns[name] = np.concatenate([np.zeros(0, np.int64), *ids])
            columns[f"{name}_starts"] = np.concatenate(
                [[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))]
            ).astype(np.int64)
        else:
            columns[name] = column.to_numpy()
    return columns
