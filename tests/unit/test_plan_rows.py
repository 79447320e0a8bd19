"""Rows of a plan's answer: what tokens cost, what is missed, and both kinds beside each other."""

import math
from types import SimpleNamespace

import pytest

from simulator.planner.evaluations import price_cluster
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.samples import Priced
from simulator.planner.search import SearchResult
from simulator.planner.trial import Outcome
from simulator.planner.uncertainty import assessment
from simulator.planner.uncertainty.sensitivity import WHAT_IFS, Sensitivity
from tests.laws.tiny_question import candidate, trials

MOE, DENSE = 0, 1
TRAFFIC = SimpleNamespace(
    rate_per_s=5.0, num_input=30.0, num_output=10.0, share_beyond=lambda _: 0.0
)
READ = SimpleNamespace(read_traffic=lambda change: SimpleNamespace(rate_per_s=5.0 * change.rate))
UNKNOWN = SimpleNamespace(draw_priced=lambda *_: None, demands={})


def found():
    space = trials().space
    return SimpleNamespace(
        space=space, question=space.question, traffic=TRAFFIC, trials=READ, evaluations=[]
    )


def sensitivity():
    return Sensitivity(found(), {}, UNKNOWN)


def evaluation(model=MOE, size=8, cost=36.0, outcome=None, **keys):
    cluster_size = None if size is None else ClusterSize(size, size)
    return Evaluation(candidate(model), cluster_size, outcome, cost, **keys)


def measured(ratio, tokens_per_s):
    return Outcome({"tpot_s.p90": ratio}, {"tpot_s.p90": 0.02 * ratio}, tokens_per_s, math.nan)


@pytest.mark.parametrize(
    ("outcome", "served"), [(None, 1.0), (measured(0.9, 50.0), 1.0), (measured(1.1, 25.0), 0.5)]
)
def test_a_token_costs_its_share_of_those_that_come_out(outcome, served):
    """36 USD an hour for 50 output tokens and 150 of prompts a second, as they are asked for."""
    cost = price_cluster(found(), evaluation(outcome=outcome))
    assert cost["cost_per_million_output_tokens"] == pytest.approx(200 / served)
    assert cost["cost_per_million_tokens"] == pytest.approx(50 / served)


@pytest.mark.parametrize(
    ("costs", "ratio"),
    [({MOE: 3.0, DENSE: 6.0}, 0.5), ({MOE: 3.0}, None), ({DENSE: 3.0}, None), ({}, None)],
)
def test_a_row_compares_both_kinds_only_where_both_are_found(costs, ratio):
    base = Priced(evaluation(), 3.0)
    met = [Priced(evaluation(model), cost) for model, cost in costs.items()]
    row = sensitivity().describe(WHAT_IFS[0], met, base)
    assert row.cost_moe_over_dense == ratio
    assert row.cost_ratio == (1.0 if met else None)
    for name, model in (("best_moe", MOE), ("best_dense", DENSE)):
        assert (getattr(row, name) is not None) == (model in costs)


def test_nothing_is_asked_of_a_first_choice_without_a_size(monkeypatch):
    """No trial is run, no store asked: there are none here."""
    monkeypatch.setattr(assessment, "map_crossover", lambda _: None)
    nothing = SearchResult(None, None, None, None, None, {}, [], [evaluation(size=None)])
    assert assessment.assess(nothing) == assessment.Assessment(None)
