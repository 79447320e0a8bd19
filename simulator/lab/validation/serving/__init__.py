"""Serving points: TTFT and TPOT at a fixed number of requests in flight, answered by the product's
own engine.

A row becomes a deployment, the deployment a plan and a step table (shared by all rows that differ
in load, batching and engine version only), and the compiled closed loop serves the load under which
such points are taken.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from simulator.base.data import cache_lookups
from simulator.base.errors import UserError
from simulator.base.progress import CountDone
from simulator.lab.validation import OK, Answers, Measure
from simulator.lab.validation.extrapolation import ASSUMED, EXTRAPOLATED, Band
from simulator.lab.validation.serving.answer import answer_points
from simulator.lab.validation.serving.campaigns import load_campaigns
from simulator.lab.validation.serving.deployments import table_key
from simulator.lab.validation.serving.points import COLUMNS, Point, UnreadableError, read_point
from simulator.parallel.workers import sweep

__all__ = ["COLUMNS", "MEASURES", "Group", "answer", "groups"]

MEASURES = (Measure("ttft", "silicon_ttft_ms", 1e-3), Measure("tpot", "silicon_tpot_ms", 1e-3))


class Group(NamedTuple):
    """Rows that share a plan and a step table: what one worker does at a time."""

    key: str
    rows: tuple[int, ...]
    """Places in the table."""
    points: tuple[Point, ...]


def groups(table: pd.DataFrame) -> tuple[list[Group], dict[int, str]]:
    """The rows by what is shared between them, the dearest group first; and why others cannot be
    answered, by place.
    """
    load_campaigns()  # a wrong file is refused as a whole, not row by row
    found: dict[str, list[tuple[int, Point]]] = {}
    refused: dict[int, str] = {}
    for place, row in enumerate(table.to_dict("records")):
        try:
            point = read_point({str(name): value for name, value in row.items()})
            found.setdefault(table_key(point), []).append((place, point))
        except (UnreadableError, UserError) as error:
            refused[place] = f"unsupported: {error}"
    made = [Group(key, *zip(*members, strict=True)) for key, members in found.items()]
    return sorted(made, key=_effort, reverse=True), refused


def _effort(group: Group) -> int:
    """Tokens that the group's loads generate, about."""
    return sum(point.concurrency * point.num_output for point in group.points)


@cache_lookups()
def answer(
    table: pd.DataFrame,
    progress: CountDone = lambda _: None,
    workers: int | None = None,
) -> Answers:
    """Answer every row.

    Args:
        progress: told how many rows are done.
        workers: processes; ``None`` = one a core.
    """
    answers = Answers.make_unsupported(len(table), len(MEASURES))
    made, refused = groups(table)
    for place, reason in refused.items():
        answers.status[place] = reason
    sizes = [len(group.rows) for group in made]

    def count(done: int) -> None:
        progress(len(refused) + sum(sizes[:done]))

    found = sweep(answer_points, [group.points for group in made], count, workers)
    for group, answered in zip(made, found, strict=True):
        for place, one in zip(group.rows, answered, strict=True):
            answers.status[place], answers.group[place] = one.status, one.group
            wider = EXTRAPOLATED if one.widens and one.status != OK else 1.0
            answers.seconds[place] = one.ttft_s, one.tpot_s
            for m, factors in enumerate((one.ttft_band, one.tpot_band)):
                band = Band(*factors) if factors else ASSUMED
                ends = band.spread(answers.seconds[place, m], wider)
                answers.low[place, m], answers.high[place, m] = ends
    return answers
