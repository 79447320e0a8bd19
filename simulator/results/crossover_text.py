"""Sentences on where the winner of a crossover map changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from simulator.results.answer.crossover import (
    CrossoverMap,
    FullPoint,
    LoadPoint,
    MapPoint,
    SpeedPoint,
)
from simulator.results.formats import TIMES, number
from simulator.results.plan_text import doubt

Point = TypeVar("Point", bound=MapPoint)


def describe_flips(found: CrossoverMap) -> tuple[str, ...]:
    """Describe the changes of the winner along loads, times per token, lengths, the network's speed
    and expert-parallel sizes; the network as it is unless said.

    A winner that never changes is described along loads and times per token only. A ratio that the
    map marks as uncertain carries the same mark.
    """
    return tuple(
        f"{moe} against {dense}, {text}"
        for moe in found.models.moe
        for dense in found.models.dense
        for text in _describe_pair(
            _select_pair(found.cells, moe, dense),
            _select_pair(found.at_same_time, moe, dense),
            _select_pair(found.at_full_load, moe, dense),
        )
    )


def _select_pair(points: Iterable[Point], moe: str, dense: str) -> list[Point]:
    return [point for point in points if (point.moe, point.dense) == (moe, dense)]


def _describe_pair(
    cells: list[LoadPoint], same_time: list[SpeedPoint], full_load: list[FullPoint]
) -> list[str]:
    usual_cells = [point for point in cells if point.network == 1.0]
    said = [
        *_describe_stretches(
            _choose_best_ep(usual_cells),
            "batch_per_gpu",
            lambda value: f"{value:g} sequences a GPU",
            "at the same load",
        ),
        *_describe_stretches(
            [point for point in same_time if point.gpus is None and point.network == 1.0],
            "time_per_token_s",
            lambda value: f"{value * 1000:g} ms a token",
            "at the same time per token",
        ),
    ]
    usual = [point for point in full_load if point.network == 1.0]
    for gpus, part in _group(usual, lambda point: point.gpus or 0):
        where = f"at full load with TP {gpus} on both" if gpus else "at full load"
        said += _compare_lengths(part, where)
    said += _describe_turns(
        _choose_best_ep(cells), "network", lambda value: f"{value:g}{TIMES} the network"
    )
    said += _describe_turns(
        usual_cells, "ep", lambda value: f"EP {value:g}" if value > 1 else "no EP"
    )
    return said


def _describe_stretches(
    points: list[Point], axis: str, text: Callable[[float], str], where: str
) -> list[str]:
    """One sentence for requests of one length: who wins up to where on an axis.

    Args:
        axis: name of the field that lies on it.
    """
    said = []
    for (num_input, num_output), part in _group(points, attrgetter("input", "output")):
        decided = [point for point in part if point.winner is not None]
        if not decided:
            continue
        stretches = [
            (name, list(here)) for name, here in groupby(decided, key=attrgetter("winner"))
        ]
        place = f"{lengths(num_input, num_output)} {where}"
        if len(stretches) == 1:
            said.append(f"{place}: {stretches[0][0]} wins throughout ({_state_range(decided)})")
            continue
        parts = [
            (
                f"{name} {'up to' if n == 0 else 'from'} "
                f"{text(getattr(here[-1 if n == 0 else 0], axis))} ({_state_range(here)})"
            )
            for n, (name, here) in enumerate(stretches)
        ]
        said.append(f"{place}: " + ", ".join(parts))
    return said


def _compare_lengths(points: list[FullPoint], where: str) -> list[str]:
    """One sentence where the winner depends on the requests' lengths."""
    decided = _select_turning(points)
    parts = [
        (
            f"{point.winner} at {lengths(point.input, point.output)} "
            f"({_state_ratio(point)}, {point.deciding_term})"
        )
        for point in decided
    ]
    return [f"{where}: " + ", ".join(parts)] if parts else []


def _describe_turns(points: list[LoadPoint], axis: str, text: Callable[[float], str]) -> list[str]:
    """One sentence for every length and load at which the winner depends on the axis."""
    said = []
    for (num_input, num_output, batch), part in _group(
        points, attrgetter("input", "output", "batch_per_gpu")
    ):
        parts = [
            f"{point.winner} with {text(getattr(point, axis))} ({_state_ratio(point)})"
            for point in _select_turning(part)
        ]
        if parts:
            place = f"{lengths(num_input, num_output)} at {batch:g} sequences a GPU"
            said.append(f"{place}: " + ", ".join(parts))
    return said


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


def _group(points: Iterable[Point], key: Callable[[Point], Any]) -> list[tuple[Any, list[Point]]]:
    """Points with the same key, in the order in which they stand."""
    found: dict[Any, list[Point]] = {}
    for point in points:
        found.setdefault(key(point), []).append(point)
    return list(found.items())


def _state_range(points: Sequence[MapPoint]) -> str:
    """The MoE's tokens over the dense model's, what decides most often, and at how many of several
    places the winner is not sure.
    """
    known = [point for point in points if point.ratio is not None]
    terms = [point.deciding_term for point in points if point.deciding_term is not None]
    term = max(dict.fromkeys(terms), key=terms.count)
    if not known:
        return f"the other cannot: {term}"
    if len(known) == 1:
        return f"{_state_ratio(known[0])}, {term}"
    ratios = [point.ratio for point in known if point.ratio is not None]
    low, high = number(min(ratios)), number(max(ratios))
    narrow = sum(not point.is_clear for point in known)
    unsure = f", either may win (?) at {narrow} of {len(points)} places" if narrow else ""
    return f"{low if low == high else f'{low} to {high}'}{TIMES}, {term}{unsure}"


def _state_ratio(point: MapPoint) -> str:
    """The ratio at one place as the map has it."""
    return f"{number(point.ratio or 0.0)}{TIMES}{doubt(point)}"


def lengths(num_input: int, num_output: int) -> str:
    """Prompt and output tokens.

    >>> lengths(1024, 8192), lengths(1000, 500)
    ('1k/8k', '1000/500')
    """
    return "/".join(
        f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
        for tokens in (num_input, num_output)
    )
