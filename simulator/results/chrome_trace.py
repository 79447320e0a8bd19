"""The spans of a step in Chrome's trace-event format, which Perfetto opens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd


def chrome_trace(spans: pd.DataFrame, title: Callable[[str, str], str]) -> dict[str, Any]:
    """The spans in Chrome's trace-event format: a process a deployment and step, a thread a rank,
    microseconds.

    Args:
        title: of the step of a deployment and phase.
    """
    events: list[dict[str, Any]] = []
    for number, ((deployment, phase), group) in enumerate(
        spans.groupby(["deployment", "phase"], sort=False)
    ):
        events.append(
            {
                "ph": "M",
                "pid": number,
                "tid": 0,
                "name": "process_name",
                "args": {"name": f"{deployment}: {title(str(deployment), str(phase))}"},
            }
        )
        for rank in sorted(group["rank"].unique()):
            thread = {
                "ph": "M",
                "pid": number,
                "tid": int(rank),
                "name": "thread_name",
                "args": {"name": f"rank {rank}"},
            }
            events.append(thread)
        columns = (
            group[column].tolist() for column in ("rank", "name", "layer", "start_s", "duration_s")
        )
        for rank, name, layer, start_s, duration_s in zip(*columns, strict=True):
            event = {"ph": "X", "pid": number, "tid": int(rank), "name": name, "cat": name}
            event |= {"ts": start_s * 1e6, "dur": duration_s * 1e6, "args": {"layer": int(layer)}}
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}
