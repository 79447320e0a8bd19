"""ShareGPT conversations: a JSON list of ``{"id", "conversations": [{"from": "human|gpt", "value":
TEXT}, ...]}``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.reading import parse_json
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._rows import Rows
from simulator.workload.traces._text import APPROXIMATION, estimated_tokens


class ShareGPT(Frozen):
    """The first two turns of each conversation are prompt and answer, as in vLLM's benchmark; no
    arrival times.

    The file has text only, so lengths are estimated and a note says so.
    """

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether it is a JSON list of conversations."""
        return head.lstrip().startswith(b"[") and b'"conversations"' in head and b'"value"' in head

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read all conversations of at least two turns."""
        entries = parse_json(data, str(path))
        texts: list[tuple[str, str]] = []
        for number, entry in enumerate(entries, start=1):
            try:
                texts.append(tuple(turn["value"] + "" for turn in entry["conversations"][:2]))
            except (TypeError, KeyError):
                raise UserError(
                    f"{path}, entry {number}: conversations must be a list of turns "
                    "with a text 'value'"
                ) from None
        pairs = [pair for pair in texts if len(pair) == 2]
        notes = [APPROXIMATION]
        if len(pairs) < len(texts):
            notes.append(
                f"{len(texts) - len(pairs)} of {len(texts)} conversations of fewer "
                "than two turns left out"
            )
        columns = {
            "prompt": np.array([estimated_tokens(prompt) for prompt, _ in pairs], np.int64),
            "answer": np.array([estimated_tokens(answer) for _, answer in pairs], np.int64),
        }
        rows = Rows(columns, lambda row: f"entry {row + 1}")
        return RawRequests(
            path, "ShareGPT conversations", rows, ("", *columns), None, notes=tuple(notes)
        ).make_trace()
