"""Results of ``vllm bench serve --save-result --save-detailed``: one JSON object with lists, one
entry a request.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.reading import parse_json
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._rows import Rows
from simulator.workload.unpacking import json_keys


class VllmBench(Frozen):
    """Requests that a benchmark sent: measured start times where the file has them, otherwise a
    closed loop or lengths only.

    With ``request_rate`` "inf" and a ``max_concurrency`` the start times are the server's doing and
    not the workload's, so the trace is a closed loop of that concurrency. Failed requests (0 output
    tokens) are left out with a note.
    """

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether it is one JSON object with the keys that every such result has."""
        return head.lstrip().startswith(b"{") and json_keys(head) >= {
            "request_rate",
            "num_prompts",
            "total_input_tokens",
        }

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read all requests.

        Raises:
            UserError: also if the file lacks the lists that ``--save-detailed`` adds.
        """
        result = parse_json(data, str(path))
        num_input = _numbers(path, result, "input_lens", None)
        num_output = _numbers(path, result, "output_lens", len(num_input))
        concurrency = (
            result.get("max_concurrency")
            if result.get("request_rate") in ("inf", math.inf)
            else None
        )
        notes: list[str] = []
        time_s = None
        if concurrency is not None:
            notes.append(
                f"a closed loop of {concurrency}: the benchmark sent as fast as its "
                "max_concurrency allowed"
            )
        elif "start_times" in result:
            time_s = _numbers(path, result, "start_times", len(num_input))
        else:
            notes.append("the result has no start_times (an older vLLM): lengths only")
        columns = {
            "input_lens": _whole(path, "input_lens", num_input),
            "output_lens": _whole(path, "output_lens", num_output),
        }
        trace = RawRequests(
            path,
            "vLLM benchmark result",
            Rows(columns, lambda row: f"entry {row + 1}"),
            ("start_times", *columns),
            np.zeros(len(num_input)) if concurrency is not None else time_s,
            drops_empty=True,
            sorts=True,
            notes=tuple(notes),
        ).make_trace()
        return trace if concurrency is None else _with_concurrency(path, trace, concurrency)


def _with_concurrency(path: Path, trace: RequestTrace, concurrency: Any) -> RequestTrace:
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise UserError(
            f"{path}: max_concurrency must be a whole number of at least 1, got {concurrency!r}"
        )
    return replace(trace, concurrency=concurrency)


def _numbers(
    path: Path, result: dict[str, object], name: str, expected: int | None
) -> NDArray[np.float64]:
    found = result.get(name)
    if not isinstance(found, list):
        raise UserError(f"{path}: no list {name}; run the benchmark with --save-detailed")
    if expected is not None and len(found) != expected:
        raise UserError(f"{path}: {name} has {len(found)} entries, input_lens has {expected}")
    for row, value in enumerate(found, start=1):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"{path}, entry {row}: {name} must be a number, got {json.dumps(value)[:60]}"
            )
    return np.array(found, np.float64)


def _whole(path: Path, name: str, values: NDArray[np.float64]) -> NDArray[np.int64]:
    wrong = ~(np.isfinite(values) & (values == np.floor(values)))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{path}, entry {row + 1}: {name} must be a whole number, got {values[row]}"
        )
    return values.astype(np.int64)
