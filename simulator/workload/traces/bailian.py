"""Qwen-Bailian traces: JSON lines with ``chat_id``, seconds, prefix blocks of 16 tokens.

https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon, Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._prefix_lines import KEYS, read_prefix_lines
from simulator.workload.unpacking import json_keys


class Bailian(Frozen):
    """Arrivals in seconds, with prefix blocks of 16 tokens; turns of a chat are separate requests
    at their own times.
    """

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the keys fit, ``chat_id`` among them."""
        return json_keys(head) >= KEYS | {"chat_id"}

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace."""
        return read_prefix_lines(
            path, data, "Qwen-Bailian trace", seconds_per_tick=1.0, block_tokens=16
        )
