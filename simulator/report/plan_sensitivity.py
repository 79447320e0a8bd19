"""Confidence of a plan on its page: bands of its cost and latencies, chances, and their sources."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from simulator.report.plan_bands import band_text
from simulator.results.answer import Answer
from simulator.results.answer.certainty import FigureBand
from simulator.results.answer.parts import Band, make_band
from simulator.results.plan_text import target_text, value_text


def list_figures(answer: Answer) -> list[list[str]]:
    """A row a figure of the recommended deployment: its name, its value and its band; none where
    confidence was not worked out.
    """
    figures = {} if answer.confidence is None else answer.confidence.figures
    return [_figure(answer, name, one) for name, one in figures.items()]


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


def format_ends(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    """The ends of a band in words; empty without any, and a cluster that is not to be had where the
    band has no high end.
    """
    if low is None:
        return ""
    if high is None:
        return f"{text(low)} to no cluster within the limits"
    return band_text(make_band(low, high), text) or text(low)
