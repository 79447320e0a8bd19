"""vLLM's ``custom`` benchmark data set: JSON lines ``{"prompt": TEXT, "output_tokens": N}``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.base.frozen import Frozen
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import read_json_lines
from simulator.workload.traces._text import APPROXIMATION, estimated_tokens
from simulator.workload.unpacking import json_keys


class VllmCustom(Frozen):
    """Prompts as text (their tokens are estimated, with a note) and the exact tokens of each
    answer; no arrival times.
    """

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the first line has a prompt and none of the counts that other formats have."""
        keys = json_keys(head)
        return "prompt" in keys and not keys & {
            "timestamp",
            "input_toks",
            "conversations",
            "request_rate",
        }

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read all prompts.

        Raises:
            UserError: also if a line lacks ``output_tokens``: how long an answer will be cannot be
                told from its prompt.
        """
        rows = read_json_lines(data, {"prompt": "text", "output_tokens": "int"})
        prompts = rows.columns["prompt"]
        rows.columns["prompt"] = np.array([estimated_tokens(one) for one in prompts], np.int64)
        return RawRequests(
            path,
            "vLLM custom data set",
            rows,
            ("", "prompt", "output_tokens"),
            None,
            notes=(f"prompt {APPROXIMATION}",),
        ).make_trace()
