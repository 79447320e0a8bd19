"""What the numbers rest on: measured, fitted, published or assumed, and what was outside the
measurements.
"""

from __future__ import annotations

from typing import Any

from simulator.deployment.facts import facts_of
from simulator.planner.evaluations import best_of_each, explorer, text_of
from simulator.planner.search import SearchResult


def basis(result: SearchResult) -> dict[str, dict[str, Any]]:
    """By deployment, of the best of every model: the assumptions and warnings that a run of it
    would state.
    """
    stated = {}
    for evaluation in best_of_each(result).values():
        if evaluation.cluster_size is None:
            continue
        facts = facts_of(explorer(result, evaluation).plan(evaluation.cluster_size))
        stated[text_of(result, evaluation)] = {
            key: facts[key] for key in ("assumptions", "warnings", "is_rumour", "model_title")
        }
    return stated
