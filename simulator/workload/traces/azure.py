"""Azure LLM inference traces: 2023 (conversation, code), 2024 (a week of each) and 2025 multimodal
(LMM).

CSV ``TIMESTAMP,ContextTokens,GeneratedTokens`` (LMM: with ``NumImages``); times are wall-clock with
ticks of 100 ns, with or without a zone. https://github.com/Azure/AzurePublicDataset, CC-BY-4.0.
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import read_csv
from simulator.workload.traces._rows import Kind
from simulator.workload.unpacking import csv_header

_COLUMNS: dict[str, Kind] = {"TIMESTAMP": "clock", "ContextTokens": "int", "GeneratedTokens": "int"}


class Azure(Frozen):
    """Wall-clock arrivals, token counts, no prompts and no prefixes."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the header names the three columns."""
        return set(_COLUMNS) <= set(csv_header(head))

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole trace; images (LMM) count only through ``ContextTokens``, and a note says
        so.
        """
        has_images = "NumImages" in csv_header(data[:4096])
        rows = read_csv(path, data, _COLUMNS | ({"NumImages": "int"} if has_images else {}))
        notes: tuple[str, ...] = ()
        if has_images and rows.columns["NumImages"].any():
            notes = (
                (
                    f"{int((rows.columns['NumImages'] > 0).sum())} requests carry images, "
                    "which count only through ContextTokens"
                ),
            )
        ticks_ns = rows.columns["TIMESTAMP"]
        names, time_s = tuple(_COLUMNS), (ticks_ns - ticks_ns[:1]) / 1e9
        title = "Azure LLM inference trace, CC-BY-4.0"
        return RawRequests(path, title, rows, names, time_s, notes=notes).make_trace()
