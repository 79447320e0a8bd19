"""Experts that are placed anew while requests are served: what it costs, what it changes, and what
it leaves alone.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from simulator.engine.timeline import serve
from simulator.planner.uncertainty.run_bands import StepTables
from simulator.policies.failures import Change
from simulator.policies.placement import Placed
from tests.cases import seeds
from tests.laws.deployments import check_same_events, serve_by_events
from tests.laws.test_failures import with_changes
from tests.parts import change_plan

KEYS = {"attention_dp": 4, "ep": 4}


@dataclasses.dataclass(frozen=True)
class Script:
    """Placements by the second at which they are decided."""

    placements: tuple[tuple[float, Placed], ...]
    seen: list = dataclasses.field(default_factory=list)

    def looks(self):
        return iter([at_s for at_s, _ in self.placements])

    def decide(self, load, rng):
        self.seen.append(load)
        return dict(self.placements)[load.at_s]


Script.__module__ = "simulator.tests"  # as if it were shipped: not held to its contract


def shuffle(placed, seed):
    """Every layer's experts in another order."""
    rng = np.random.default_rng(seed)
    return dataclasses.replace(placed, expert_LP=rng.permuted(placed.expert_LP, axis=1))


def with_script(plan, *placements):
    return change_plan(plan, rebalancing=Script(placements))


def moving(tiny, *at_s, **keys):
    """A plan whose experts are shuffled at some seconds."""
    plan = tiny.plan("moe", **KEYS, **keys)
    placed = plan.placement.experts.placed
    return with_script(plan, *((second, shuffle(placed, n)) for n, second in enumerate(at_s)))


def without(plan):
    return with_script(plan)


def test_a_placement_that_stays_costs_nothing_and_changes_nothing(tiny):
    plan, trace = tiny.plan("moe", **KEYS, replicas=2), tiny.trace(60, 400.0)
    staying = with_script(plan, (0.05, plan.placement.experts.placed))
    served = tiny.serve(staying, trace)
    assert served.rebalances == ()
    pd.testing.assert_frame_equal(
        served.requests_table(), tiny.serve(plan, trace).requests_table(), check_exact=True
    )


def test_steps_cost_what_they_would_have_cost_had_experts_always_been_there(tiny):
    plan = moving(tiny, 0.5)
    ((_, after),) = plan.serving.rebalancing.placements
    experts = dataclasses.replace(plan.placement.experts, placed=after)
    there = change_plan(without(plan), experts=experts)
    trace = tiny.trace(60, 400.0)
    trace = dataclasses.replace(trace, arrival_s=trace.arrival_s + 1.0)
    served = serve(plan, trace)
    assert 0 < served.rebalances[0].seconds < 0.5
    pd.testing.assert_frame_equal(
        served.requests_table(), serve(there, trace).requests_table(), check_exact=True
    )
    assert not served.requests_table().equals(serve(without(plan), trace).requests_table())


def test_tables_that_runs_share_know_where_experts_lie(tiny):
    plan, trace, tables = moving(tiny, 0.03, 0.06), tiny.trace(60, 900.0), StepTables()
    known = serve(plan, trace).requests_table()
    for _ in range(2):
        found = serve(plan, trace, fill=tables.slow(1.0)).requests_table()
        pd.testing.assert_frame_equal(found, known, check_exact=True)


def test_what_a_policy_writes_into_its_load_moves_nothing_by_itself(tiny):
    @dataclasses.dataclass(frozen=True)
    class InPlace(Script):
        def decide(self, load, rng):
            load.placed.expert_LP[:] = load.placed.expert_LP[:, ::-1]
            return load.placed

    InPlace.__module__ = Script.__module__
    plan = tiny.plan("moe", **KEYS)
    before = plan.placement.experts.placed.expert_LP.copy()
    changed = change_plan(plan, rebalancing=InPlace(((0.03, None),)))
    served = tiny.serve(changed, tiny.trace(30, 900.0))
    assert [moved.num_experts > 0 for moved in served.rebalances] == [True]
    assert (plan.placement.experts.placed.expert_LP == before).all()


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_replica_forms_no_step_while_its_experts_move(tiny, replicas):
    plan, trace = moving(tiny, 0.05, 0.09, replicas=replicas), tiny.trace(200, 2000.0)
    served = tiny.serve(plan, trace)
    steps = served.steps_of("both")
    ends_s = (steps["start_s"] + steps["duration_s"]).to_numpy()
    for moved in served.rebalances:
        assert moved.seconds > 0
        for replica in range(replicas):
            own = (steps["replica"] == replica).to_numpy()
            before_s = ends_s[own & (steps["start_s"] <= moved.at_s)].max()
            after_s = steps["start_s"][own & (steps["start_s"] > moved.at_s)].min()
            assert after_s >= max(before_s, moved.at_s) + moved.seconds - 1e-12
    assert (served.requests_table()["outcome"] == "finished").all()


def test_a_policy_is_told_what_was_computed_since_it_was_asked_last(tiny):
    plan, trace = moving(tiny, 0.02, 0.06, 5.0), tiny.trace(60, 600.0)
    late = dataclasses.replace(trace, arrival_s=np.append(trace.arrival_s[:-1], 6.0))
    served = tiny.serve(plan, late)
    loads, moe = plan.serving.rebalancing.seen, plan.placement.model.moe
    assert [load.at_s for load in loads] == [0.02, 0.06, 5.0]
    steps = served.steps_of("both")
    early = steps[steps["start_s"] < 5.0]
    computed = int(early["prefill_tokens"].sum() + early["decodes"].sum())
    assert sum(load.num_tokens for load in loads) == computed > 0
    for load in loads:
        pairs_L = load.load_LE.sum(axis=1)
        assert pairs_L == pytest.approx(np.full(len(pairs_L), load.num_tokens * moe.top_k))


@seeds(0, 20)
def test_whatever_moves_and_stops_no_request_is_lost_on_the_way(tiny, seed):
    rng = np.random.default_rng([seed, 11])
    prefill = {"parallel": {"tp": 2}, "replicas": 1} if rng.random() < 0.4 else None
    at_s = np.sort(rng.uniform(0, 0.2, int(rng.integers(1, 5)))).tolist()
    plan = moving(tiny, *at_s, replicas=2, prefill=prefill)
    pool = "both" if prefill is None else "decode"
    down_s = float(rng.uniform(0, 0.2))
    plan = with_changes(
        plan, Change(down_s, pool, (1,), False), Change(down_s + 0.05, pool, (1,), True)
    )
    trace = tiny.trace(60, 600.0)
    table = tiny.serve(plan, trace).requests_table()
    assert (table["outcome"] == "finished").all()
    assert (table["num_output"] == trace.num_output).all()


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("concurrency", [None, 6])
def test_what_happens_is_the_same_where_every_step_is_an_event(
    tiny, monkeypatch, replicas, concurrency
):
    plan = moving(tiny, 0.03, 0.05, replicas=replicas)
    trace = tiny.trace(40, 900.0, concurrency=concurrency)
    simpy = serve_by_events(monkeypatch, plan, trace, tiny.tables)
    served = tiny.serve(plan, trace)
    assert served.rebalances == simpy.rebalances
    check_same_events(served, simpy)
