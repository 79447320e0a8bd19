"""Pairs among serving points: experts spread whole against experts split like dense blocks, and
mixtures of experts against dense models on the same GPUs.

Points are answered by the ``serving`` suite; here only pairs of them are compared. Pairs of expert
splits are those of :mod:`simulator.validation.published._splits`. A mixture and a dense model are
compared by the most tokens a second that a GPU gives at any split and at any of the loads that both
were measured at, on the same GPU and engine, in the same precision, for the same lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import ClassVar

import numpy as np
import pandas as pd

from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.config.model import load_model
from simulator.results.scores import is_answered
from simulator.validation import OK, Answers, serving
from simulator.validation.published import Reply
from simulator.validation.published._scores import make_rows, ratio
from simulator.validation.published._splits import pairs, trends
from simulator.validation.serving.models import find_model
from simulator.validation.serving.points import Point, UnreadableError, read_point
from simulator.validation.tables import Table

_TTFT, _TPOT = "silicon_ttft_ms", "silicon_tpot_ms"


class ServingPairs(Frozen):
    """The columns of the ``serving`` suite."""

    columns: ClassVar[tuple[str, ...]] = serving.COLUMNS

    def replies(self, read: Table, tick: Progress) -> list[Reply]:
        table = read.values
        points = _points(table)
        splits = [(pair.spread, pair.split) for pair in pairs(_mixtures(points), _ids(table))]
        wanted = sorted(
            {
                place
                for group in (
                    *splits,
                    *(group for side in _sides(points).values() for group in side),
                )
                for place in group
            }
        )
        replies = [Reply.unsupported("a pair of its kind is not in the table")] * len(table)
        if not wanted:
            return replies
        chosen = table.iloc[wanted].reset_index(drop=True)
        answers = serving.answer(
            chosen, lambda done: tick("pairs of serving points", done, len(chosen))
        )
        for number, place in enumerate(wanted):
            point = points[place]
            if point is not None:
                replies[place] = _reply(point, answers, number)
        return replies

    def scores(self, read: Table, replies: list[Reply]) -> pd.DataFrame:
        table = read.values
        if not {_TTFT, _TPOT} <= set(table.columns):
            return make_rows([])
        points = _points(table)
        measured = [
            _tokens_per_s(point, float(ttft) / 1e3, float(tpot) / 1e3)
            if point is not None
            else np.nan
            for point, ttft, tpot in zip(points, table[_TTFT], table[_TPOT], strict=True)
        ]
        rows = [
            pd.Series({**reply._asdict(), "measured": value})
            for reply, value in zip(replies, measured, strict=True)
        ]
        compared = [
            (
                pair,
                ratio(
                    pair.group,
                    _text(points[pair.spread], "EP : TP"),
                    "ratio",
                    rows[pair.spread],
                    rows[pair.split],
                ),
            )
            for pair in pairs(_mixtures(points), _ids(table))
            if np.isfinite([measured[pair.spread], measured[pair.split]]).all()
        ]
        found = [*(row for _, row in compared), *trends(compared)]
        for mixtures, dense in _sides(points).values():
            above, below = (_best(group, rows) for group in (mixtures, dense))
            if above is not None and below is not None:
                names = f"{_model(points[mixtures[0]])} : {_model(points[dense[0]])}"
                found.append(
                    ratio(
                        "serving MoE : dense",
                        _text(points[mixtures[0]], names),
                        "ratio",
                        above,
                        below,
                    )
                )
        return make_rows(found)


def _points(table: pd.DataFrame) -> list[Point | None]:
    """Every row read; ``None`` for rows that cannot be, and for prompts and decodes served
    apart.
    """
    found: list[Point | None] = []
    for row in table.to_dict("records"):
        try:
            point = read_point({str(name): value for name, value in row.items()})
            found.append(point if point.prefill is None else None)
        except UnreadableError:
            found.append(None)
    return found


def _model(point: Point | None) -> str | None:
    found = find_model(point.repository) if point is not None else None
    return found.model if found is not None else None


def _is_mixture(point: Point) -> bool | None:
    name = _model(point)
    return None if name is None else load_model(name, name).moe is not None


def _grouped(
    points: list[Point | None], key: Callable[[Point], Hashable | None]
) -> dict[Hashable, list[int]]:
    found: dict[Hashable, list[int]] = {}
    for place, point in enumerate(points):
        group = None if point is None else key(point)
        if group is not None:
            found.setdefault(group, []).append(place)
    return found


def _mixtures(points: list[Point | None]) -> list[Point | None]:
    return [point if point is not None and _is_mixture(point) else None for point in points]


def _ids(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table["id"]]


def _sides(points: list[Point | None]) -> dict[Hashable, tuple[list[int], list[int]]]:
    """Places of one mixture of experts and of one dense model under the same lengths, by what is
    the same.
    """

    def key(point: Point) -> Hashable | None:
        precision = (
            "4 bits"
            if "fp4" in point.gemm_format
            else "8 bits"
            if "8" in point.gemm_format
            else point.gemm_format
        )
        return (
            point.system,
            point.engine,
            precision,
            point.num_input,
            point.num_output,
            point.campaign,
        )

    found: dict[Hashable, tuple[list[int], list[int]]] = {}
    for group, places in _grouped(points, key).items():
        by_model: dict[tuple[str, bool], list[int]] = {}
        for place in places:
            point = points[place]
            name, mixture = _model(point), None if point is None else _is_mixture(point)
            if name is not None and mixture is not None:
                by_model.setdefault((name, mixture), []).append(place)
        for (above, is_moe), mixtures in by_model.items():
            for (below, is_also_moe), dense in by_model.items():
                if (
                    is_moe
                    and not is_also_moe
                    and all(sides := _at_common_loads(points, mixtures, dense))
                ):
                    found[(group, above, below)] = sides
    return found


def _at_common_loads(points: list[Point | None], *sides: list[int]) -> tuple[list[int], list[int]]:
    """Those of both sides whose number of requests in flight the other side has too."""
    loads = [
        {point.concurrency for place in side if (point := points[place]) is not None}
        for side in sides
    ]
    common = loads[0] & loads[1]
    one, other = (
        [place for place in side if (point := points[place]) and point.concurrency in common]
        for side in sides
    )
    return one, other


def _tokens_per_s(point: Point, ttft_s: float, tpot_s: float) -> float:
    """Output tokens a second of a GPU, from the two latencies at a fixed number of requests in
    flight.
    """
    seconds = ttft_s + (point.num_output - 1) * tpot_s
    return (
        point.concurrency * point.num_output / seconds / point.decode.num_ranks
        if seconds > 0
        else np.nan
    )


def _reply(point: Point, answers: Answers, number: int) -> Reply:
    status = answers.status[number]
    if status.startswith("unsupported"):
        return Reply.unsupported(status.removeprefix("unsupported: "))
    value, fast, slow = (
        _tokens_per_s(point, *part[number]) for part in (answers.seconds, answers.low, answers.high)
    )
    return Reply(value, slow, fast, status, "output tokens a second of a GPU")


def _best(places: list[int], rows: list[pd.Series]) -> pd.Series | None:
    """The most that was measured, and the most that is predicted; ``None`` where a point is not
    answered.
    """
    chosen = pd.DataFrame([rows[place] for place in places])
    chosen = chosen[np.isfinite(chosen["measured"].astype(float))]
    chosen = chosen[is_answered(chosen["status"].astype(str))] if len(chosen) else chosen
    if chosen.empty:
        return None
    best: pd.Series = chosen.iloc[int(chosen["predicted"].to_numpy(float).argmax())].copy()
    best["measured"] = chosen["measured"].astype(float).max()
    best["status"] = (
        OK
        if (chosen["status"] == OK).all()
        else next(text for text in chosen["status"] if text != OK)
    )
    return best


def _text(point: Point | None, what: str) -> str:
    if point is None:
        return what
    load = f"{point.num_input}/{point.num_output}"
    if what.startswith("EP"):
        load += f" c{point.concurrency}, {_model(point)} on {point.decode.num_ranks}"
    return f"{what}, {point.system} {point.engine} {point.version} {load}".replace("  ", " ")
