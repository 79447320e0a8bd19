"""vLLM's ``timed_trace`` benchmark data set with its defaults: JSON lines, seconds, prefix blocks
of 16 tokens.

With ``--timed-trace-chunk-hash-size 512`` and milliseconds the same layout is Mooncake's and is
read as such.
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._prefix_lines import KEYS, has_blocks_of, read_prefix_lines
from simulator.workload.unpacking import json_keys


class TimedTrace(Frozen):
    """Arrivals in seconds, with prefix blocks of 16 tokens."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the keys fit and only blocks of 16 tokens explain the number of ids."""
        keys = json_keys(head)
        return (
            keys >= KEYS
            and "chat_id" not in keys
            and has_blocks_of(head, 16)
            and not has_blocks_of(head, 512)
        )

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace."""
        return read_prefix_lines(
            path, data, "vLLM timed trace", seconds_per_tick=1.0, block_tokens=16
        )
