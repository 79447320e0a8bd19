"""Traces as Splitwise and Vidur replay them: CSV ``arrived_at`` (s), ``num_prefill_tokens``,
``num_decode_tokens``.

Vidur's ``splitwise_conv`` and ``splitwise_code`` are the Azure 2023 traces row by row.
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import read_csv
from simulator.workload.traces._rows import Kind
from simulator.workload.unpacking import csv_header

_COLUMNS: dict[str, Kind] = {
    "arrived_at": "float",
    "num_prefill_tokens": "int",
    "num_decode_tokens": "int",
}


class Splitwise(Frozen):
    """Arrivals in seconds and token counts."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the header names the three columns."""
        return set(_COLUMNS) <= set(csv_header(head))

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace."""
        rows = read_csv(path, data, _COLUMNS)
        time_s = rows.columns["arrived_at"]
        return RawRequests(path, "Splitwise trace", rows, tuple(_COLUMNS), time_s).make_trace()
