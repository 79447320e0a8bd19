"""LLMServingSim's JSON lines: workloads (``arrival_time_ns``, ns) and its vLLM benchmark logs
(``arrival_time``, s).

https://github.com/casys-kaist/LLMServingSim, MIT. Sessions with chained sub-requests are another
layout and are not read.
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import read_json_lines
from simulator.workload.unpacking import head_of, json_keys

_LENGTHS = {"input_toks", "output_toks"}


class LLMServingSim(Frozen):
    """Arrivals and token counts; a benchmark log is sorted by arrival, since it may be written in
    order of completion.
    """

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the keys fit, with either unit of time."""
        keys = json_keys(head)
        return keys >= _LENGTHS and bool(keys & {"arrival_time_ns", "arrival_time"})

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace."""
        is_workload = "arrival_time_ns" in json_keys(head_of(data))
        time_name = "arrival_time_ns" if is_workload else "arrival_time"
        rows = read_json_lines(
            data,
            {
                time_name: "int" if is_workload else "float",
                "input_toks": "int",
                "output_toks": "int",
            },
        )
        times = rows.columns[time_name]
        title = "LLMServingSim workload" if is_workload else "LLMServingSim benchmark log"
        names = (time_name, "input_toks", "output_toks")
        time_s = (times - times[:1]) / 1e9 if is_workload else times
        return RawRequests(path, title, rows, names, time_s, sorts=not is_workload).make_trace()
