"""Experts spread whole over ranks against experts split like dense blocks: pairs of serving points,
and what load does to them.

A pair is alike in all but how its experts are divided. Where one of the two does not say its
release, both must be of one sweep: their ids are the same up to the load. What else such runs
differ in is not known, so they are counted on their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from simulator.validation.published import BY_LOAD, RELEASE_UNSAID, SAME_RELEASE
from simulator.validation.published._scores import Row
from simulator.validation.serving.points import Point

_LOAD = re.compile(r"_c\d+(?=_|$).*")
_FEWEST_LOADS = 3


class Pair(NamedTuple):
    """Two places in a table."""

    spread: int
    split: int
    series: tuple[str, str, Point]
    """Both sweeps, and what pairs that differ in load only share."""
    load: int
    """Requests in flight."""
    group: str


def pairs(points: Sequence[Point | None], ids: Sequence[str]) -> list[Pair]:
    """Every pair of points of mixtures of experts.

    Args:
        points: ``None`` where there is no such point.
        ids: of the rows.
    """
    alike: dict[Point, list[int]] = {}
    for place, point in enumerate(points):
        if (
            point is not None
            and point.decode.num_ranks > 1
            and point.decode.ep in (1, point.decode.num_ranks)
        ):
            plain = point._replace(version="", decode=point.decode._replace(ep=1))
            alike.setdefault(plain, []).append(place)
    return [
        Pair(
            spread,
            split,
            (sweep_of(ids[spread]), sweep_of(ids[split]), _unloaded(plain)),
            plain.concurrency,
            group,
        )
        for plain, places in alike.items()
        for spread, split in _divided(points, places)
        if (group := _group(points, ids, spread, split)) is not None
    ]


def sweep_of(name: str) -> str:
    """An id up to its load.

    >>> sweep_of("dsr1_b200_sglang_fp8_agg_1024x1024_c4_cfg81"), sweep_of("mine")
    ('dsr1_b200_sglang_fp8_agg_1024x1024', '')
    """
    return _LOAD.sub("", name) if _LOAD.search(name) else ""


def _divided(points: Sequence[Point | None], places: Sequence[int]) -> Iterator[tuple[int, int]]:
    sides: tuple[list[int], list[int]] = ([], [])
    for place in places:
        point = points[place]
        if point is not None:
            sides[point.decode.ep > 1].append(place)
    yield from ((spread, split) for spread in sides[1] for split in sides[0])


def _group(
    points: Sequence[Point | None], ids: Sequence[str], spread: int, split: int
) -> str | None:
    one, other = points[spread], points[split]
    if one is None or other is None:
        return None
    if one.version == other.version:
        return SAME_RELEASE
    is_one_sweep = sweep_of(ids[spread]) == sweep_of(ids[split]) != ""
    return RELEASE_UNSAID if is_one_sweep and not (one.version and other.version) else None


def _unloaded(plain: Point) -> Point:
    return plain._replace(concurrency=0, decode=plain.decode._replace(batch=None))


def trends(found: Sequence[tuple[Pair, Row]], text: str = "EP : TP") -> list[Row]:
    """For each series of at least three loads, how many times larger the ratio is at its largest
    load than at its smallest.

    By the slope of the ratio's logarithm over the load's, so that the direction rests on all
    points.
    """
    series: dict[tuple[str, tuple[str, str, Point]], list[tuple[int, Row]]] = {}
    for pair, row in found:
        if np.isfinite(row["predicted"]):
            series.setdefault((pair.group, pair.series), []).append((pair.load, row))
    rows: list[Row] = []
    for (group, (_, sweep, point)), members in series.items():
        loads = np.array([load for load, _ in members], dtype=float)
        if len(np.unique(loads)) < _FEWEST_LOADS:
            continue
        measured, predicted = (
            _over_loads(loads, np.array([row[name] for _, row in members], dtype=float))
            for name in ("measured", "predicted")
        )
        ends = [
            min(members, key=lambda member: member[0])[1],
            max(members, key=lambda member: member[0])[1],
        ]
        wide = float(np.hypot(*(np.log(row["high"] / row["predicted"]) for row in ends)))
        rows.append(
            {
                "group": group + BY_LOAD,
                "subject": (
                    f"{text}, c{int(loads.max())} over c{int(loads.min())}, {sweep} "
                    f"on {point.decode.num_ranks}"
                ),
                "quantity": "ratio",
                "unit": "x",
                "measured": measured,
                "predicted": predicted,
                "low": predicted / np.exp(wide),
                "high": predicted * np.exp(wide),
                "status": ends[0]["status"],
            }
        )
    return rows


def _over_loads(loads: np.ndarray, ratios: np.ndarray) -> float:
    logs = np.log(loads)
    slope = float(np.polyfit(logs, np.log(ratios), 1)[0])
    return float(np.exp(slope * (logs.max() - logs.min())))
