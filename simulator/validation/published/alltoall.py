"""All-to-all kernels as their libraries' own pages give them: latencies, or bandwidths of what they
count as moved.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd

from simulator.base.frozen import Frozen
from simulator.base.plugins import build
from simulator.base.progress import Progress
from simulator.validation import Answers
from simulator.validation.hardware import accelerator_name
from simulator.validation.kernels import KernelFamily
from simulator.validation.published import Reply
from simulator.validation.published._cells import number
from simulator.validation.published._scores import figures
from simulator.validation.traffic import routed

_HIDDEN, _EXPERTS, _TOP_K, _GROUPS, _CHOSEN_GROUPS = 7168, 256, 8, 8, 4
"""DeepSeek-V3, which DeepEP's tables are of."""
_VECTOR_BYTES = {"dispatch": _HIDDEN * (1 + 4 / 128), "combine": _HIDDEN * 2.0}
"""FP8 with a scale for 128 numbers on the way out, BF16 on the way back."""


class Alltoall(Frozen):
    """``library, hardware, mode, op, ep, tokens_per_rank, conditions``; microseconds."""

    columns: ClassVar[tuple[str, ...]] = (
        "library",
        "hardware",
        "mode",
        "op",
        "ep",
        "tokens_per_rank",
        "conditions",
    )

    def replies(self, table: pd.DataFrame, tick: Progress) -> list[Reply]:
        tick("all-to-all kernels", 0, len(table))
        family: KernelFamily = build(
            "validation.kernels", {"kind": "alltoall"}, "validate published"
        )
        answers: Answers = family.answer(table)
        found = []
        for place, status in enumerate(answers.status):
            if status.startswith("unsupported"):
                found.append(Reply.unsupported(status.removeprefix("unsupported").lstrip(": ")))
                continue
            value, low, high = (
                float(part[place, 0]) * 1e6 for part in (answers.seconds, answers.low, answers.high)
            )
            found.append(Reply(value, low, high, status, answers.group[place]))
        tick("all-to-all kernels", len(table), len(table))
        return found

    def scores(self, table: pd.DataFrame, replies: list[Reply]) -> pd.DataFrame:
        measured = [_latency_us(row) for _, row in table.iterrows()]
        groups = [f"all-to-all, {library}" for library in table["library"]]
        subjects = [
            (
                f"{row.library} {row.mode} {row.op} EP{row.ep} {row.tokens_per_rank} "
                f"tokens, {row.conditions}"
            )
            for row in table.itertuples()
        ]
        count = len(table)
        return figures(
            groups,
            subjects,
            ["all-to-all"] * count,
            ["us"] * count,
            pd.Series(measured, dtype=float),
            replies,
        )


def _latency_us(row: pd.Series) -> float:
    """As measured; from the bandwidth where only that is given.

    DeepEP's normal kernels count every vector that reaches a rank (inside a node) or a node
    (across), its own included.
    """
    latency = number(row, "latency_us")
    bandwidth = number(row, "bandwidth_GBps") * 1e9
    if (
        np.isfinite(latency)
        or not np.isfinite(bandwidth)
        or row["mode"] != "normal"
        or row["op"] not in _VECTOR_BYTES
    ):
        return latency
    name = next(
        (name for word in str(row["hardware"]).split() if (name := accelerator_name(word))), None
    )
    ep, tokens = number(row, "ep"), number(row, "tokens_per_rank")
    if name is None or not ep >= 2:
        return np.nan
    found = routed(name, int(ep), "per_node", _EXPERTS, _TOP_K, _GROUPS, _CHOSEN_GROUPS)
    if found is None:
        return np.nan
    nodes = found.num_nodes
    reached = found.crossing * nodes / (nodes - 1) if nodes > 1 else found.copies * ep / (ep - 1)
    return tokens * reached * _VECTOR_BYTES[row["op"]] / bandwidth * 1e6
