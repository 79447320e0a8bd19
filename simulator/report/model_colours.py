"""How models look: a colour each on the whole page, and a line and a mark for what they are (MoE,
dense, pruned).
"""

from __future__ import annotations

import html
from typing import Any

from simulator.report import style
from simulator.results.plan_text import KINDS, kind_of

_DASHES = dict(zip(KINDS, ("solid", "dash", "dot"), strict=True))
SYMBOLS = dict(zip(KINDS, ("circle", "square", "diamond"), strict=True))


def label_of(row: dict[str, Any]) -> str:
    """The name in a legend: the model with what it is, escaped."""
    return f"{html.escape(str(row['model']), quote=False)} ({kind_of(row)})"


def colours(answer: dict[str, Any]) -> dict[str, str]:
    """The colour of each model, in the order of the question."""
    names = [str(model["name"]) for model in answer.get("models", [])]
    names += [str(row["model"]) for key in ("candidates", "pareto") for row in answer.get(key, [])]
    return {
        name: style.DEPLOYMENT_COLOURS[n % len(style.DEPLOYMENT_COLOURS)]
        for n, name in enumerate(dict.fromkeys(names))
    }


def colour_of(answer: dict[str, Any], row: dict[str, Any]) -> str:
    """That of a row's model; a model that the answer does not list is grey."""
    return colours(answer).get(str(row["model"]), style.MUTED)


def is_striped(row: dict[str, Any]) -> bool:
    """Whether a row's bars and patches are striped: those of dense models are, on the whole
    page.
    """
    return kind_of(row) == "dense"


def line_of(answer: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The line of a row's model."""
    return {"color": colour_of(answer, row), "dash": _DASHES[kind_of(row)], "width": 2}


def by_label(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by their name in a legend, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(label_of(row), []).append(row)
    return found


def model_of(answer: dict[str, Any], deployment: str) -> dict[str, Any] | None:
    """Model, and what it is, of a deployment that is known by its text; None where no model of the
    answer begins it.
    """
    rows = [*answer.get("candidates", []), *answer.get("pareto", [])]
    rows += [
        {"model": model["name"], "is_moe": model["is_moe"]} for model in answer.get("models", [])
    ]
    named = [row for row in rows if deployment.startswith(f"{row['model']} ")]
    # The longest name, so that a name within a name is not taken instead.
    return max(named, key=lambda row: len(row["model"]), default=None)
