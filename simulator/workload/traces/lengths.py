"""Length statistics as Vidur and Etalon ship them: CSV
``num_prefill_tokens,num_decode_tokens,...``, without arrival times.

https://github.com/microsoft/vidur (MIT), https://github.com/project-etalon/etalon (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import read_csv
from simulator.workload.traces._rows import Kind
from simulator.workload.unpacking import csv_header

_COLUMNS: dict[str, Kind] = {"num_prefill_tokens": "int", "num_decode_tokens": "int"}


class Lengths(Frozen):
    """Pairs of lengths; arrivals must come from an arrival process."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the header names the two columns and no arrival time."""
        header = set(csv_header(head))
        return set(_COLUMNS) <= header and "arrived_at" not in header

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read all pairs."""
        rows = read_csv(path, data, _COLUMNS)
        names = ("", "num_prefill_tokens", "num_decode_tokens")
        return RawRequests(path, "request lengths", rows, names, None).make_trace()
