"""Experts that are rebalanced while some replicas go on without some of their ranks."""

import numpy as np
import pytest

from simulator.base.plugins import build
from simulator.engine.timeline import serve
from tests.cases import seeds
from tests.laws.deployments import check_same_events, serve_by_events
from tests.laws.failing import check_outcomes, with_changes
from tests.laws.test_recovery import draw_elastic, draw_gpu_losses
from tests.laws.test_scaling import draw_single_pool
from tests.parts import change_plan


def draw_moving(tiny, seed, *, beside_steps):
    """Any deployment that goes on with the ranks it has left, whose experts move meanwhile.

    Args:
        beside_steps: whether they may do so beside steps, which each fidelity prices by itself.
    """
    rng = np.random.default_rng([seed, 29])
    plan, trace = draw_single_pool(tiny, seed, draw_elastic)
    replicas = int(rng.integers(1, 4))
    plan = change_plan(plan, replicas=replicas, failures=())
    span_s = float(np.nanmax(tiny.serve(plan, trace).requests_table()["finish_s"]))
    plan = with_changes(plan, *draw_gpu_losses(plan, rng, span_s))
    keys = {"every_s": max(1e-3, span_s * float(rng.choice([0.05, 0.2]))), "least_gain": 1e-6}
    keys |= {"asynchronous": beside_steps and bool(rng.random() < 0.5)}
    policy = build("rebalancing", {"kind": "periodic", **keys}, "test")
    return change_plan(plan, rebalancing=policy), trace


@seeds(31_000, 12, soak=250)
def test_no_request_is_lost_or_served_twice(tiny, seed):
    plan, trace = draw_moving(tiny, seed, beside_steps=True)
    check_outcomes(plan, trace, serve(plan, trace))


@seeds(32_000, 6, soak=120)
def test_every_fidelity_moves_and_shrinks_alike(tiny, monkeypatch, seed):
    plan, trace = draw_moving(tiny, seed, beside_steps=False)
    check_same_events(
        tiny.serve(plan, trace), serve_by_events(monkeypatch, plan, trace, tiny.tables)
    )


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_experts_of_a_replica_without_a_rank_stay_until_it_is_back(tiny, fidelity):
    """Only the other one is paused for the move, and both have the new placement in the end."""
    plan = tiny.plan(
        "moe",
        attention_dp=4,
        ep=4,
        replicas=2,
        placement={"kind": "eplb", "num_slots": 24},
        network_speed=0.01,
        failures=[{"kind": "kill", "at_s": 0.1, "gpu": 1, "restart_s": 0.3}],
        recovery={"kind": "elastic", "detection_s": 0.0, "regroup_s": 0.0, "startup_s": 0.0},
        rebalancing={
            "kind": "periodic",
            "every_s": 0.2,
            "least_gain": 1e-6,
        },
    )
    trace = tiny.trace(200, 300.0, longest_input=60, longest_output=60)
    served = serve(plan, trace, fidelity)
    move = served.rebalances[0]
    assert [one.kind for one in served.changed] == ["shrinks", "grows"]
    assert served.changed[0].at_s < move.at_s < served.changed[1].at_s
    steps = served.steps_of("both")
    begun = steps[
        (steps["start_s"] > move.at_s + 1e-9) & (steps["start_s"] < move.at_s + 0.9 * move.seconds)
    ]
    assert set(begun["replica"]) == {0}
    assert move.num_bytes > 0
    assert (served.requests_table()["outcome"] == "finished").all()
