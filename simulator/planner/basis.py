"""What the numbers rest on: measured, fitted, published or assumed, and what was outside the
measurements.
"""

from __future__ import annotations

from typing import Any

from simulator.deployment.facts import facts_of
from simulator.planner.findings import best_of_each, explorer, text_of
from simulator.planner.search import Found


def basis(found: Found) -> dict[str, dict[str, Any]]:
    """By deployment, of the best of every model: the assumptions and warnings that a run of it
    would state.
    """
    stated = {}
    for finding in best_of_each(found).values():
        if finding.sized is None:
            continue
        facts = facts_of(explorer(found, finding).plan(finding.sized))
        stated[text_of(found, finding)] = {
            key: facts[key] for key in ("assumptions", "warnings", "is_rumour", "model_title")
        }
    return stated
