"""Mooncake traces (Kimi): JSON lines, milliseconds, prefix blocks of 512 tokens.

https://github.com/kvcache-ai/Mooncake, FAST'25 release, Apache-2.0. Also what AIPerf takes, where
``hash_ids`` may be absent.
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._prefix_lines import KEYS, has_blocks_of, read_prefix_lines
from simulator.workload.unpacking import json_keys

_BLOCK_TOKENS = 512
"""Tokens of a prefix block in the published traces."""


class Mooncake(Frozen):
    """Arrivals in whole milliseconds, with prefix blocks of 512 tokens or none."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the keys fit and the blocks are not those of 16 tokens that other sources use."""
        keys = json_keys(head)
        is_of_another_source = "chat_id" in keys or (
            has_blocks_of(head, 16) and not has_blocks_of(head, _BLOCK_TOKENS)
        )
        return keys >= KEYS and not is_of_another_source

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace."""
        return read_prefix_lines(
            path, data, "Mooncake trace", seconds_per_tick=1e-3, block_tokens=_BLOCK_TOKENS
        )
