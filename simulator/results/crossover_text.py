"""Findings on where the winner of a crossover map changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from simulator.base.findings import Finding
from simulator.results.answer.crossover import (
    CrossoverMap,
    FullPoint,
    LoadPoint,
    MapPoint,
    SpeedPoint,
)

Point = TypeVar("Point", bound=MapPoint)
_Key = TypeVar("_Key")


def describe_flips(found: CrossoverMap) -> Iterator[Finding]:
    """Find the changes of the winner along loads, times per token, lengths, the network's speed and
    expert-parallel sizes; the network as it is unless said.

    A winner that never changes is described along loads and times per token only. A ratio that the
    map marks as uncertain carries the same mark.
    """
    for moe in found.models.moe:
        for dense in found.models.dense:
            for reading in _describe_pair(
                _select_pair(found.cells, moe, dense),
                _select_pair(found.at_same_time, moe, dense),
                _select_pair(found.at_full_load, moe, dense),
            ):
                yield Finding("map.pair", moe=moe, dense=dense, reading=reading)


def _select_pair(points: Iterable[Point], moe: str, dense: str) -> list[Point]:
    return [point for point in points if (point.moe, point.dense) == (moe, dense)]


def _describe_pair(
    cells: list[LoadPoint], same_time: list[SpeedPoint], full_load: list[FullPoint]
) -> Iterator[Finding]:
    usual_cells = [point for point in cells if point.network == 1.0]
    yield from _find_stretches(_choose_best_ep(usual_cells), "batch_per_gpu")
    every = [point for point in same_time if point.gpus is None and point.network == 1.0]
    yield from _find_stretches(every, "time_per_token_s")
    usual = [point for point in full_load if point.network == 1.0]
    for gpus, part in _group(usual, lambda point: point.gpus or 0):
        if turning := _select_turning(part):
            yield Finding("map.lengths", gpus=gpus, points=turning)
    yield from _find_turns(_choose_best_ep(cells), "network")
    yield from _find_turns(usual_cells, "ep")


def _find_stretches(points: list[Point], axis: str) -> Iterator[Finding]:
    """Find for requests of one length who wins up to where on an axis.

    Args:
        axis: name of the field that lies on it, a row of the table.
    """
    for (num_input, num_output), part in _group(points, attrgetter("input", "output")):
        decided = [point for point in part if point.winner is not None]
        stretches = [
            (name, list(here)) for name, here in groupby(decided, key=attrgetter("winner"))
        ]
        parts = [
            Finding(
                "map.stretch",
                winner=name,
                axis=axis,
                is_first=not n,
                value=getattr(here[0 if n else -1], axis),
                range=_find_range(here),
            )
            for n, (name, here) in enumerate(stretches)
        ]
        if parts:
            kind = "map.stretches" if len(parts) > 1 else "map.throughout"
            yield Finding(kind, input=num_input, output=num_output, axis=axis, parts=parts)


def _find_turns(points: list[LoadPoint], axis: str) -> Iterator[Finding]:
    """Find every length and load at which the winner depends on the axis."""
    for _, part in _group(points, attrgetter("input", "output", "batch_per_gpu")):
        if turning := _select_turning(part):
            yield Finding("map.turns", axis=axis, points=turning)


def _select_turning(points: list[Point]) -> list[Point]:
    """The points with a winner and a ratio; none where one model wins all of them."""
    decided = [point for point in points if point.winner is not None and point.ratio is not None]
    return decided if len({point.winner for point in decided}) > 1 else []


def _choose_best_ep(cells: list[LoadPoint]) -> list[LoadPoint]:
    """The cells of the expert-parallel size that makes most, at each place."""
    places = attrgetter("input", "output", "network", "batch_per_gpu")
    return [
        max(part, key=lambda point: point.moe_tokens_per_s_gpu or 0.0)
        for _, part in _group(cells, places)
    ]


def _group(points: Iterable[Point], key: Callable[[Point], _Key]) -> list[tuple[_Key, list[Point]]]:
    """Points with the same key, in the order in which they stand."""
    found: dict[_Key, list[Point]] = {}
    for point in points:
        found.setdefault(key(point), []).append(point)
    return list(found.items())


def _find_range(points: Sequence[MapPoint]) -> Finding:
    """Find the MoE's tokens over the dense model's, what decides most often, and at how many of
    several places the winner is not sure.
    """
    known = [point for point in points if point.ratio is not None]
    terms = [point.deciding_term for point in points if point.deciding_term is not None]
    return Finding(
        "map.range",
        ratios=[point.ratio for point in known],
        unsure=sum(not point.is_clear for point in known),
        places=len(points),
        term=max(dict.fromkeys(terms), key=terms.count),
    )
