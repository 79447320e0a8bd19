"""The project's own table, Parquet or CSV: ``num_input``, ``num_output`` and, where known,
``arrival_s``, ``domain`` (a text that says what kind of text it is), ``request_id`` and prefix
blocks.

Prefix blocks are two columns: ``prefix_ids`` (a list of ids in Parquet, ids separated by spaces in
CSV) and ``prefix_block_tokens`` (the same number in every row).

Further columns are attributes of requests, such as ``priority``: numbers or short texts, which
policies find by name.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import arrow
from simulator.workload.traces._rows import Kind
from simulator.workload.traces._tables import (
    column_names,
    list_others,
    read_others,
    read_table,
    tell_left_out,
)
from simulator.workload.unpacking import head_of

_LENGTHS: dict[str, Kind] = {"num_input": "int", "num_output": "int"}
_PREFIXES: dict[str, Kind] = {"prefix_block_tokens": "int", "prefix_ids": "ids"}


class Table(Frozen):
    """Table that :func:`write_table` writes, and that a user's own script can easily write."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the columns of lengths are there, in a CSV header or a Parquet schema."""
        return set(_LENGTHS) <= set(column_names(path, head))

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole table."""
        names = column_names(path, head_of(data))
        kinds = dict(_LENGTHS)
        if "arrival_s" in names:
            kinds["arrival_s"] = "float"
        if "domain" in names:
            kinds["domain"] = "text"
        if "request_id" in names:
            kinds["request_id"] = "text"
        if "prefix_ids" in names:
            if "prefix_block_tokens" not in names:
                raise UserError(
                    f"{path}: prefix_ids need a column prefix_block_tokens, the tokens of one block"
                )
            kinds |= _PREFIXES
        others = list_others(names, kinds)
        rows = read_table(path, data, kinds, others)
        attributes = read_others(rows, others)
        columns = rows.columns
        blocks = columns.get("prefix_block_tokens", np.zeros(0, np.int64))
        if len(blocks) and (blocks[0] < 1 or (blocks != blocks[0]).any()):
            raise UserError(
                f"{path}: prefix_block_tokens must be the same number, at least 1, in every row"
            )
        return RawRequests(
            path,
            "request table",
            rows,
            ("arrival_s", "num_input", "num_output"),
            columns.get("arrival_s"),
            prefix_block_tokens=int(blocks[0]) if len(blocks) else 0,
            prefix_starts=columns.get("prefix_ids_starts"),
            prefix_ids=columns.get("prefix_ids"),
            domain=columns.get("domain"),
            request_ids=columns.get("request_id"),
            attributes=attributes,
            notes=tell_left_out(others, attributes),
        ).make_trace()


def list_columns(trace: RequestTrace) -> dict[str, Any]:
    """The columns of a trace's table, which :class:`Table` reads back unchanged."""
    columns: dict[str, Any] = {"arrival_s": trace.arrival_s} if trace.has_arrivals else {}
    columns |= {"num_input": trace.num_input, "num_output": trace.num_output}
    if trace.domains:
        names = (*trace.domains, "")
        columns["domain"] = [names[place] for place in trace.domain.tolist()]
    if len(trace.request_ids):
        columns["request_id"] = trace.request_ids.tolist()
    columns |= {name: values.tolist() for name, values in trace.attributes.items()}
    if trace.prefix_block_tokens:
        columns["prefix_block_tokens"] = np.full(trace.num_requests, trace.prefix_block_tokens)
        columns["prefix_ids"] = [
            ids.tolist() for ids in np.split(trace.prefix_ids, trace.prefix_starts[1:-1])
        ]
    return columns


def write_table(trace: RequestTrace, path: Path) -> None:
    """Write a trace as Parquet, or as CSV where the name ends in ``.csv``."""
    columns = list_columns(trace)
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
