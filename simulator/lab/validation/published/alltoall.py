"""Latencies of all-to-all kernels by their libraries' own pages. Where a page gives only the
bandwidth of what it counts as moved, the shipped table holds the latency that follows from it.
"""

from __future__ import annotations

from typing import ClassVar

import pandas as pd

from simulator.base.frozen import Frozen
from simulator.base.plugins import build
from simulator.base.progress import Progress, count_part
from simulator.lab.validation.kernels import KernelFamily
from simulator.lab.validation.published import FIGURE_COLUMNS, Reply
from simulator.lab.validation.published._rows import figures
from simulator.lab.validation.tables import Table

_US_PER_S = 1e6
"""Microseconds in a second."""


class Alltoall(Frozen):
    """``library, hardware, mode, op, ep, tokens_per_rank, conditions``: microseconds."""

    columns: ClassVar[tuple[str, ...]] = (
        *FIGURE_COLUMNS,
        *("library", "hardware", "mode", "op", "ep", "tokens_per_rank", "conditions"),
    )

    def replies(self, table: Table, tick: Progress) -> list[Reply]:
        count = count_part(tick, "all-to-all kernels", len(table.values))
        where = "validate published"
        family: KernelFamily = build("validation.kernels", {"kind": "alltoall"}, where)
        answers = family.answer(table.values)
        count(len(table.values))
        return [
            Reply.from_answers(answers, row, lambda seconds: seconds[0] * _US_PER_S, group)
            for row, group in enumerate(answers.group)
        ]

    def scores(self, table: Table, replies: list[Reply]) -> pd.DataFrame:
        return figures(table.values, replies)
