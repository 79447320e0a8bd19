"""How models look: a colour each on the whole page, and a line and a mark for what they are (MoE, dense, pruned)."""

from __future__ import annotations

import html
from typing import Any

from simulator.report import style
from simulator.report.plan_text import KINDS, kind_of

_DASHES = dict(zip(KINDS, ("solid", "dash", "dot"), strict=True))
SYMBOLS = dict(zip(KINDS, ("circle", "square", "diamond"), strict=True))
BAR_PIXELS = 52


def label_of(row: dict[str, Any]) -> str:
    """The name in a legend: the model with what it is, escaped."""
    return f"{html.escape(str(row['model']), quote=False)} ({kind_of(row)})"


def colours(answer: dict[str, Any]) -> dict[str, str]:
    """The colour of each model, in the order of the question."""
    names = [str(model["name"]) for model in answer.get("models", [])]
    names += [str(row["model"]) for key in ("candidates", "pareto") for row in answer.get(key, [])]
    return {name: style.DEPLOYMENT_COLOURS[n % len(style.DEPLOYMENT_COLOURS)] for n, name in enumerate(dict.fromkeys(names))}


def line_of(answer: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The line of a row's model."""
    return {"color": colours(answer)[row["model"]], "dash": _DASHES[kind_of(row)], "width": 2}


def by_label(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by their name in a legend, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(label_of(row), []).append(row)
    return found
