"""Tables that runs share: a run says the same by a table that others have filled, and only
deployments whose steps cost the same share one.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from simulator.engine import shards
from simulator.engine.pool import start_pools
from simulator.engine.shards import digest_placement, share_table
from simulator.engine.timeline import run_plan, serve
from simulator.policies.dispatch.per_rank import PerRank
from tests.cases import seeds
from tests.laws.deployments import draw_deployment
from tests.laws.test_mixes import TWO, drift
from tests.parts import change_plan

KEYS = {"attention_dp": 4, "ep": 4, "num_layers": 2}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No table of another test."""
    monkeypatch.setattr(shards, "_TABLES", type(shards._TABLES)(most=64))


def shared(plan, trace):
    return share_table(start_pools(plan, trace)["both"], "steps")


@seeds(8900, 6)
def test_a_run_says_the_same_by_a_table_that_others_have_filled(tiny, seed):
    plan, trace = draw_deployment(tiny, seed)
    slowly = dataclasses.replace(trace, arrival_s=3 * trace.arrival_s)
    alone = serve(plan, trace)
    for one in (slowly, trace):
        found = serve(plan, one, fill=share_table)
    pd.testing.assert_frame_equal(found.requests_table(), alone.requests_table(), check_exact=True)
    for name in alone.pools:
        np.testing.assert_array_equal(found.steps_of(name), alone.steps_of(name))


def test_drops_by_layer_are_the_same_by_a_run_before_this_one(tiny):
    plan = tiny.plan("moe", **KEYS, overflow={"kind": "capacity", "factor": 1.0})
    trace = tiny.trace(20)
    first, again = (run_plan(plan, trace, fill=share_table).overflow_by_layer for _ in range(2))
    assert again == first
    assert sum(first.dropped) > 0


def test_deployments_of_other_rules_names_and_numbers_of_replicas_share_a_table(tiny):
    trace = tiny.trace(20)
    first = shared(tiny.plan("moe", **KEYS), trace)
    serve(tiny.plan("moe", **KEYS), trace, fill=share_table)  # caches much on its plan
    assert first.is_filled.any()
    for change in ({"replicas": 2}, {"balancing": {"kind": "random"}}, {"memory_fraction": 0.8}):
        other = tiny.plan("moe", **KEYS, **change)
        renamed = change_plan(other, name="another")
        assert shared(renamed, trace).is_filled is first.is_filled, change


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"dispatch": {"kind": "per_rank"}},
        {"overlap": "two_batch"},
        {"weight_dtype": "fp8"},
        {"placement": {"kind": "random"}},
        {"engine": "sglang"},
        {"routing": {"kind": "uniform"}},
        {"overflow": {"kind": "capacity", "factor": 1.0}},
        {"speculation": {"kind": "module", "tokens": 3, "accepted": 0.7}},
        {"cluster": "h200-sxm-8"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_deployments_whose_steps_cost_something_else_do_not(tiny, change):
    one, other = tiny.plan("moe", **KEYS), tiny.plan("moe", **KEYS | change)
    assert digest_placement(one.placement) != digest_placement(other.placement)


def test_a_table_of_profiles_or_of_a_users_own_code_is_its_runs_own(tiny):
    plan = tiny.plan("moe", **KEYS, routing=TWO)
    trace = drift(tiny.trace(10))
    assert shared(plan, trace).is_filled is not shared(plan, trace).is_filled
    plan, trace = tiny.plan("moe", **KEYS), tiny.trace(10)
    assert shared(plan, trace).is_filled is shared(plan, trace).is_filled

    class Mine(PerRank):
        pass

    Mine.__module__ = "mine"
    experts = dataclasses.replace(plan.placement.experts, dispatch=Mine())
    own = change_plan(plan, experts=experts)
    assert shared(own, trace).is_filled is not shared(own, trace).is_filled
