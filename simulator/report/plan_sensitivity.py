"""Confidence of a plan on its page: bands of its cost and latencies, chances, and their sources."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from simulator.report.plan_bands import band_text
from simulator.results.answer import Answer, Confidence
from simulator.results.answer.certainty import FigureBand
from simulator.results.answer.parts import Band, make_band
from simulator.results.formats import TIMES, number, percent
from simulator.results.plan_text import hourly, target_text, times, value_text


class ConfidenceView(NamedTuple):
    """Confidence of a plan."""

    facts: dict[str, str]
    figures: list[list[str]]
    """A row a figure of the recommended deployment: its name, its value, its band."""
    sources: list[list[str]]
    """A row a source of doubt: its name, its factors, its meaning."""


def describe_confidence(answer: Answer) -> ConfidenceView | None:
    """The band of the cost and of the latencies, and what they are made of; None where it was not
    worked out.
    """
    sure = answer.confidence
    if sure is None:
        return None
    return ConfidenceView(
        _facts(answer, sure),
        [_figure(answer, name, one) for name, one in sure.figures.items()],
        [
            [one.name, _format_band(one.low, one.high, lambda v: f"{number(v)}{TIMES}"), one.text]
            for one in sure.sources
        ],
    )


def _facts(answer: Answer, sure: Confidence) -> dict[str, str]:
    return {
        "Cost, 80 % of cases": _format_band(sure.cost_low, sure.cost_high, partial(hourly, answer)),
        "Meets every target as it is": _share(sure.meets_targets),
        "Needs more than the limits allow": _share(sure.fails or None),
        "Headroom, 80 % of cases": _format_band(sure.headroom_low, sure.headroom_high, times),
        "Costs no more than the second choice": _share(sure.beats_second),
        "Costs less than the second choice": _share(sure.cheaper_than_second),
        "The second choice": sure.second or "",
        "MoE costs no more than dense": _share(sure.moe_costs_no_more_than_dense),
        "MoE is cheaper than dense": _share(sure.moe_beats_dense),
        "Cost of MoE over dense, 80 % of cases": _moe_over_dense(answer, sure),
    }


def _figure(answer: Answer, name: str, found: FigureBand) -> list[str]:
    """A figure of the recommended deployment with its band: that of its row, where the row has
    one.
    """
    text = partial(value_text, name)
    value: float | None = found.value
    cases: Band | None = found.band
    row = answer.recommended
    if row is not None and row.band_of(name) is not None:
        value, cases = row.measured_value(name), row.band_of(name)
    value = found.value if value is None else value
    return [target_text(name), text(value), band_text(cases, text) or text(value)]


def _moe_over_dense(answer: Answer, sure: Confidence) -> str:
    compared = answer.moe_vs_dense
    band = None if compared is None else compared.band_of("cost_ratio")
    return band_text(band, times) or _format_band(
        sure.cost_moe_over_dense_low, sure.cost_moe_over_dense_high, times
    )


def _format_band(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    if low is None:
        return ""
    if high is None:
        return f"{text(low)} to no cluster within the limits"
    return band_text(make_band(low, high), text) or text(low)


def _share(value: float | None) -> str:
    return "" if value is None else f"{percent(value)} probable"
