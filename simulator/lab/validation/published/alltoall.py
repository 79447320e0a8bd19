"""Latencies of all-to-all kernels by their libraries' own pages. Where a page gives only the
bandwidth of what it counts as moved, the shipped table holds the latency that follows from it.
"""

from __future__ import annotations

from typing import ClassVar

import pandas as pd

from simulator.base.frozen import Frozen
from simulator.base.plugins import build
from simulator.base.progress import Progress
from simulator.lab.validation import Answers
from simulator.lab.validation.kernels import KernelFamily
from simulator.lab.validation.published import FIGURE_COLUMNS, Reply
from simulator.lab.validation.published._rows import figures
from simulator.lab.validation.tables import Table

_US_PER_S = 1e6
"""Microseconds in a second."""
_TITLE = "all-to-all kernels"


class Alltoall(Frozen):
    """``library, hardware, mode, op, ep, tokens_per_rank, conditions``: microseconds."""

    columns: ClassVar[tuple[str, ...]] = (
        *FIGURE_COLUMNS,
        *("library", "hardware", "mode", "op", "ep", "tokens_per_rank", "conditions"),
    )

    def replies(self, table: Table, tick: Progress) -> list[Reply]:
        tick(_TITLE, 0, len(table.values))
        where = "validate published"
        family: KernelFamily = build("validation.kernels", {"kind": "alltoall"}, where)
        answers: Answers = family.answer(table.values)
        tick(_TITLE, len(table.values), len(table.values))
        return [_reply(answers, row) for row in range(len(table.values))]

    def scores(self, table: Table, replies: list[Reply]) -> pd.DataFrame:
        return figures(table.values, replies)


def _reply(answers: Answers, row: int) -> Reply:
    status = answers.status[row]
    if status.startswith("unsupported"):
        return Reply.refuse_row(status.removeprefix("unsupported").lstrip(": "))
    parts = (answers.seconds, answers.low, answers.high)
    value, low, high = (float(part[row, 0]) * _US_PER_S for part in parts)
    return Reply(value, low, high, status, answers.group[row])
