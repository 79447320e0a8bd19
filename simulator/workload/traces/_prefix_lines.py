"""JSON lines ``timestamp, input_length, output_length, hash_ids``: one layout that three sources
use with different units.

Mooncake: milliseconds and blocks of 512 tokens. Bailian and vLLM's timed traces: seconds and blocks
of 16. The wrong block size would shorten prompts 32 times, and the wrong unit stretch the time
1,000 times, so the block size is told from the rows themselves: a row has ``ceil(input_length /
block)`` ids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.base.errors import UserError
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import read_json_lines
from simulator.workload.traces._rows import Kind, Rows
from simulator.workload.unpacking import head_of, json_keys, json_rows

KEYS = {"timestamp", "input_length", "output_length"}


def has_blocks_of(head: bytes, block_tokens: int) -> bool:
    """Whether every row in the head has as many ids as blocks of that size need."""
    rows = [row for row in json_rows(head) if "hash_ids" in row]
    try:
        return bool(rows) and all(
            len(row["hash_ids"]) == -(-row["input_length"] // block_tokens) for row in rows
        )
    except (TypeError, KeyError):
        return False


def read_prefix_lines(
    path: Path, data: bytes, title: str, *, seconds_per_tick: float, block_tokens: int
) -> RequestTrace:
    """Read the whole file.

    Raises:
        UserError: if a row is wrong, its ids do not fit the block size, or a millisecond is not
            whole.
    """
    with_blocks = "hash_ids" in json_keys(head_of(data))
    kinds: dict[str, Kind] = {"timestamp": "float", "input_length": "int", "output_length": "int"}
    rows = read_json_lines(data, kinds | ({"hash_ids": "ids"} if with_blocks else {}))
    columns, timestamps = rows.columns, rows.columns["timestamp"]
    fractional = timestamps != np.floor(timestamps)
    if seconds_per_tick != 1.0 and fractional.any():
        row = int(np.argmax(fractional))
        raise UserError(
            f"{path}, {rows.line(row)}: timestamp must be whole milliseconds in "
            f"a {title}, got {timestamps[row]}; multiply by 1000 if it is in seconds"
        )
    if with_blocks:
        _check_blocks(path, rows, block_tokens)
    unit = "seconds" if seconds_per_tick == 1.0 else "milliseconds"
    return RawRequests(
        path,
        title,
        rows,
        ("timestamp", "input_length", "output_length"),
        (timestamps - timestamps[:1]) * seconds_per_tick,
        prefix_block_tokens=block_tokens if with_blocks else 0,
        prefix_starts=columns.get("hash_ids_starts"),
        prefix_ids=columns.get("hash_ids"),
        notes=(f"timestamps read as {unit}",),
    ).make_trace()


def _check_blocks(path: Path, rows: Rows, block_tokens: int) -> None:
    num_input = rows.columns["input_length"]
    num_ids = np.diff(rows.columns["hash_ids_starts"])
    expected = -(-num_input // block_tokens)
    wrong = (num_ids != expected) & (num_input > 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{path}, {rows.line(row)}: {num_ids[row]} hash_ids for "
            f"input_length {num_input[row]}; blocks of {block_tokens} tokens need {expected[row]}"
        )
