"""Pools for prompts and decodes that scale, each by itself: nothing is lost on the way, a replica
leaves once nobody needs its caches, and every fidelity agrees.
"""

import dataclasses

import numpy as np
import pytest

from simulator.engine.timeline import serve
from simulator.results.availability import measure_held
from tests.cases import seeds
from tests.laws.deployments import check_same_events, draw_deployment, serve_by_events
from tests.laws.failing import with_changes
from tests.laws.test_recovery import draw_gpu_losses
from tests.laws.test_scaling import draw_policy
from tests.parts import change_plan


def draw_scaled_pools(tiny, seed):
    """Any deployment with a prefill pool, of which both pools, or one of them, scale."""
    rng = np.random.default_rng([seed, 23])
    for attempt in range(1000):
        plan, trace = draw_deployment(tiny, [seed, attempt])
        if plan.prefill is not None:
            break
    plan = change_plan(plan, replicas=3, failures=())
    plan = dataclasses.replace(plan, prefill=change_plan(plan.prefill, replicas=3))
    span_s = float(np.nanmax(serve(plan, trace).requests_table()["finish_s"]))
    which = rng.choice(["both", "prefill", "decode"])
    if which != "prefill":
        plan = change_plan(plan, scaling=draw_policy(plan, rng, span_s))
    if which != "decode":
        prefill = change_plan(plan.prefill, scaling=draw_policy(plan.prefill, rng, span_s))
        plan = dataclasses.replace(plan, prefill=prefill)
    return plan, trace, rng, span_s


@seeds(12_000, 20)
def test_nothing_is_lost_where_pools_scale(tiny, seed):
    plan, trace, *_ = draw_scaled_pools(tiny, seed)
    served = serve(plan, trace)
    table = served.requests_table()
    assert (table["outcome"] == "finished").all()
    assert not table["num_retries"].any()
    steps = served.steps
    assert steps["prefill_tokens"].to_numpy()[(steps["pool"] == "prefill").to_numpy()].sum() >= (
        trace.num_input.sum() - table["num_cached"].sum()
    )
    for pool in served.pools.values():
        counts = pool.ranks.counts
        assert not counts.num_kept.any()
        assert not counts.is_draining.any() or (counts.is_gone == 0).any()
    end_s = float(table["finish_s"].max())
    held = measure_held(plan, served.changed, end_s)
    for own, pool in zip(held, plan.pools, strict=True):
        assert own <= pool.serving.replicas * pool.placement.layout.num_gpus * (1 + 1e-9)


@seeds(12_500, 12)
def test_every_fidelity_scales_pools_alike(tiny, monkeypatch, seed):
    plan, trace, rng, span_s = draw_scaled_pools(tiny, seed)
    if rng.random() < 0.5:
        plan = with_changes(plan, *draw_gpu_losses(plan, rng, span_s))
    served = tiny.serve(plan, trace)
    assert set(served.requests_table()["outcome"]) <= {"finished", "lost"}
    check_same_events(served, serve_by_events(monkeypatch, plan, trace, tiny.tables))


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_a_prefill_replica_keeps_its_caches_until_they_have_arrived(tiny, fidelity):
    """It drains while caches wait for the decode pool, and leaves when the last has gone."""
    scaling = {
        "kind": "schedule",
        "changes": [{"at_s": 0.0, "replicas": 2}, {"at_s": 0.25, "replicas": 1}],
    }
    prefill = {"parallel": {"tp": 1}, "replicas": 2, "handshake_s": 0.2, "scaling": scaling}
    plan = tiny.plan("dense", tp=1, replicas=1, prefill=prefill, engine="vllm")
    trace = tiny.trace(60, 400.0, longest_input=200, longest_output=20)
    served = serve(plan, trace, fidelity)
    table = served.requests_table()
    kinds = [(change.kind, change.pool) for change in served.changed]
    assert kinds == [("drains", "prefill"), ("leaves", "prefill")]
    own = table[table["prefill_replica"] == 2]
    arrived_s = own["first_token_s"].max()
    assert len(own) > 5
    assert served.changed[1].at_s > served.changed[0].at_s + 0.1
    assert served.changed[1].at_s <= arrived_s + 1e-9
    assert (table["outcome"] == "finished").all()
    assert not table["num_retries"].any()
