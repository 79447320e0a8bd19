"""BurstGPT traces (v1, v2, v3): CSV, seconds since the first day's midnight.

Columns ``Timestamp, Model, Request tokens, Response tokens, Total tokens, Log Type``; v3 inserts
``Session ID`` and ``Elapsed time``, so columns are found by name. https://github.com/HPMLL/BurstGPT
(arXiv 2401.17644). About 8 % of the rows are failed requests with 0 tokens; they are left out with
a note.
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
    "Timestamp": "float",
    "Request tokens": "int",
    "Response tokens": "int",
}


class BurstGPT(Frozen):
    """All models of the trace together, conversations and API calls alike."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the header names the columns."""
        return set(_COLUMNS) <= set(csv_header(head))

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace."""
        rows = read_csv(path, data, _COLUMNS)
        time_s = rows.columns["Timestamp"]
        return RawRequests(
            path, "BurstGPT trace", rows, tuple(_COLUMNS), time_s, drops_empty=True
        ).make_trace()
