"""Looks of models and of bands on the page of a plan, in its figures too."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from simulator.report import marks, style
from simulator.results import plan_text
from simulator.results.answer import Answer
from simulator.results.answer.parts import Band
from simulator.results.plan_text import OfModel, kind_of

_DASHES = dict(zip(plan_text.KINDS, ("solid", "dash", "dot"), strict=True))
AnyOfModel = TypeVar("AnyOfModel", bound=OfModel)
SYMBOLS = dict(zip(plan_text.KINDS, ("circle", "square", "diamond"), strict=True))


def label_of(row: OfModel) -> str:
    """The name in a legend: the model with what it is, escaped."""
    return f"{html.escape(row.model, quote=False)} ({kind_of(row)})"


def colours(answer: Answer) -> dict[str, str]:
    """The colour of each model, in the order of the question."""
    names = [model.name for model in answer.models]
    names += [row.model for row in answer.candidates] + [row.model for row in answer.pareto]
    return {name: style.colour_at(n) for n, name in enumerate(dict.fromkeys(names))}


def colour_of(answer: Answer, row: OfModel) -> str:
    """The colour of a row's model; a model that the answer does not list is grey."""
    return colours(answer).get(row.model, style.MUTED)


def is_striped(row: OfModel) -> bool:
    """Whether a row's bars and patches are striped: those of dense models are, on the whole
    page.
    """
    return kind_of(row) == "dense"


def line_of(answer: Answer, row: OfModel) -> dict[str, Any]:
    """The line of a row's model."""
    return {"color": colour_of(answer, row), "dash": _DASHES[kind_of(row)], "width": 2}


def by_label(rows: Sequence[AnyOfModel]) -> dict[str, list[AnyOfModel]]:
    """Rows by their name in a legend, in their order."""
    found: dict[str, list[AnyOfModel]] = {}
    for row in rows:
        found.setdefault(label_of(row), []).append(row)
    return found


class _Listed(NamedTuple):
    """A model of the question of which nothing else is known."""

    model: str
    is_moe: bool
    is_pruned: bool = False


def model_of(answer: Answer, deployment: str) -> OfModel | None:
    """Model, and what it is, of a deployment that is known by its text; None where no model of the
    answer begins it.
    """
    listed = [_Listed(model.name, model.is_moe) for model in answer.models]
    rows: list[OfModel] = [*answer.candidates, *answer.pareto, *listed]
    named = [row for row in rows if deployment.startswith(f"{row.model} ")]
    # The longest name, so that a name within a name is not taken instead.
    return max(named, key=lambda row: len(row.model), default=None)


_BEYOND = 1000.0
"""Times its value at which a whisker without an end stops: far off any plot."""


def whiskers(
    values: Sequence[float], bands: Sequence[Band | None], colour: str
) -> dict[str, object]:
    """Error bars of a trace: ``error_x`` or ``error_y``; empty where no point has a band.

    Args:
        values: where the points lie on that axis.
        bands: the bands of these; a figure outside its band gets a whisker on one side only.
    """
    if not any(found and found.is_wide for found in bands):
        return {}
    ends = [
        (found.low, min(found.high, _BEYOND * value)) if found else (value, value)
        for value, found in zip(values, bands, strict=True)
    ]
    return marks.whiskers(values, *zip(*ends, strict=True), color=colour, thickness=1.5, width=4)
