"""Assumptions and warnings that an answer rests on."""

from __future__ import annotations

from simulator.deployment.facts import facts_of
from simulator.planner.conditions import WHOLE
from simulator.planner.evaluations import best_of_each, text_of
from simulator.planner.search import SearchResult
from simulator.results.answer import Basis


def state_basis(result: SearchResult) -> dict[str, Basis]:
    """Assumptions and warnings that runs of the best deployment of every model would state, by
    deployment.
    """
    stated = {}
    for one in best_of_each(result).values():
        if one.cluster_size is not None:
            opened = result.trials.open_explorer(one.candidate, WHOLE)
            facts = facts_of(opened.plan(one.cluster_size))
            basis = {key: facts[key] for key in Basis.model_fields}
            stated[text_of(result, one)] = Basis.model_validate(basis)
    return stated
