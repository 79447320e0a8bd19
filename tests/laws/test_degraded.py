"""Slower GPUs and links: what they cost, at every fidelity, and when."""

import numpy as np
import pytest

from simulator.engine.timeline import make_record, serve
from simulator.results.sampled_steps import find_errors
from tests.laws.test_one_price import price_both

EP8 = {"attention_dp": 8, "ep": 8}
EP16 = {"attention_dp": 16, "ep": 16}
TP2 = {"attention_dp": 4, "tp": 2, "ep": 8}
SLOW_GPU = [{"gpu": 3, "compute": 0.5}]
SLOW_CARD = [{"gpu": 3, "scale_out": 0.2, "scale_up": 0.2}]
MIXED = [{"gpu": 1, "compute": 0.7}, {"gpu": 5, "scale_up": 0.3}, {"node": 0, "scale_out": 0.5}]


def end_times(served):
    return served.requests["finish_s"].to_numpy()


def run(tiny, trace, degraded, fidelity="step", model="moe", **keys):
    return serve(tiny.plan(model, degraded=degraded, **{**EP8, **keys}), trace, fidelity)


@pytest.mark.parametrize("degraded", [SLOW_GPU, SLOW_CARD, MIXED], ids=["gpu", "card", "mixed"])
@pytest.mark.parametrize("split", [EP16, TP2], ids=["ep16", "tp2"])
def test_the_table_is_what_ranks_take_with_slower_ones(tiny, monkeypatch, split, degraded):
    """The table has a state for each class of groups that may have most tokens."""
    plan = tiny.plan("moe", replicas=1, degraded=degraded, **split)
    trace = tiny.trace(60, 80.0, longest_input=400, longest_output=16)
    by_table, by_ranks = price_both(monkeypatch, plan, trace)
    assert by_table.sum() == pytest.approx(by_ranks.sum(), rel=0.02)


@pytest.mark.parametrize(
    "degraded", [[{"node": 0, "scale_out": 0.1}], [{"gpu": 0, "scale_out": 0.1}]]
)
def test_fidelities_agree_whoever_has_most_tokens(tiny, degraded):
    """Few requests at a time, all of which go to the first of equally loaded groups."""
    plan = tiny.plan("moe", **EP16, replicas=1, degraded=degraded)
    trace = tiny.trace(20, 10.0, longest_input=600, longest_output=6)
    by_table, by_ranks = (
        (served.requests["first_token_s"] - served.requests["arrival_s"]).mean()
        for served in (serve(plan, trace, one) for one in ("step", "rank"))
    )
    assert by_table == pytest.approx(by_ranks, rel=0.03)


@pytest.mark.parametrize("split", [{"tp": 4}, {"tp": 2, "attention_dp": 2}, {"tp": 8}])
def test_a_dense_model_is_priced_exactly(tiny, monkeypatch, split):
    replicas = 1 if split == {"tp": 8} else 2
    plan = tiny.plan("dense", replicas=replicas, degraded=MIXED, **split)
    trace = tiny.trace(20, 80.0, longest_input=400, longest_output=12)
    np.testing.assert_allclose(*price_both(monkeypatch, plan, trace), rtol=1e-9)


@pytest.mark.parametrize("fidelity", ["step", "rank", "message"])
def test_wires_that_all_are_slower_are_a_slower_network(tiny, fidelity):
    trace = tiny.trace(8, 200.0, longest_output=6)
    half = [{"scale_up": 0.5, "scale_out": 0.5}]
    slower = end_times(run(tiny, trace, half, fidelity))
    as_network = run(tiny, trace, (), fidelity, network_speed=0.5)
    np.testing.assert_array_equal(slower, end_times(as_network))


def test_all_gpus_at_half_speed_compute_for_twice_as_long(tiny):
    """Each step's computation doubles; exchanges and the engine's own work stay."""
    trace = tiny.trace(1, longest_output=9)  # alone, so that steps are the same
    usual, slower = (run(tiny, trace, degraded) for degraded in ((), [{"compute": 0.5}]))
    for phase in ("attention", "dense", "experts"):
        np.testing.assert_allclose(
            slower.steps[f"{phase}_s"], 2 * usual.steps[f"{phase}_s"], rtol=1e-9
        )
    for phase in ("dispatch", "combine", "overhead"):
        np.testing.assert_allclose(slower.steps[f"{phase}_s"], usual.steps[f"{phase}_s"])


@pytest.mark.parametrize("key", ["compute", "scale_up", "scale_out"])
def test_the_slower_the_later(tiny, key):
    trace = tiny.trace(12, 100.0, longest_output=12)
    last = [
        end_times(run(tiny, trace, [{"gpu": 2, key: share}] if share < 1 else ())).max()
        for share in (1.0, 0.5, 0.1, 0.01)
    ]
    assert last == sorted(last)
    if key == "scale_out":  # a replica in one node has no links between domains
        assert last[-1] == last[0]
    else:
        assert last[-1] > last[0]


def test_only_the_replica_of_the_gpu_is_slower_and_only_while_it_is(tiny):
    """Steps of the other replica, and steps before and after, are those of a usual run."""
    trace = tiny.trace(80, 200.0)
    spread = {"replicas": 2, "balancing": {"kind": "round_robin"}}
    usual = run(tiny, trace, (), **spread)
    replica_of = usual.requests["replica"].to_numpy()
    slower = run(tiny, trace, [{"gpu": 9, "compute": 0.4}], **spread)
    later = end_times(slower) > end_times(usual)
    assert not later[replica_of == 0].any()
    assert later[replica_of == 1].mean() > 0.9
    middle_s = float(np.median(end_times(usual)))
    lately = run(tiny, trace, [{"gpu": 9, "compute": 0.4, "at_s": middle_s}], **spread)
    before = end_times(usual) < middle_s
    np.testing.assert_array_equal(end_times(lately)[before], end_times(usual)[before])
    over = [{"gpu": 9, "compute": 0.4, "for_s": 0.02}]
    first = serve(tiny.plan("moe", **EP8, **spread, degraded=over), trace)
    assert end_times(usual).max() <= end_times(first).max() < end_times(slower).max()


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_what_is_slower_after_the_last_token_changes_nothing(tiny, fidelity):
    trace = tiny.trace(10)
    usual = run(tiny, trace, (), fidelity)
    late = [{"compute": 0.1, "at_s": 1000.0}, {"gpu": 0, "compute": 0.5, "at_s": 500.0}]
    np.testing.assert_array_equal(end_times(run(tiny, trace, late, fidelity)), end_times(usual))


def test_messages_and_fluids_agree_on_slower_wires(tiny):
    trace = tiny.trace(8, 200.0, longest_output=6)
    ends = [end_times(run(tiny, trace, MIXED, one)).max() for one in ("rank", "message")]
    assert ends[1] == pytest.approx(ends[0], rel=0.05)


ELASTIC = {
    "placement": {"kind": "eplb", "num_slots": 32},
    "failures": [{"kind": "kill", "at_s": 0.05, "gpu": 2, "restart_s": 0.05}],
    "recovery": {"kind": "elastic", "detection_s": 0.01, "regroup_s": 0.01, "startup_s": 0.01},
}


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_a_replica_that_has_lost_ranks_keeps_its_slower_ones(tiny, fidelity):
    trace = tiny.trace(40, 300.0)
    slower = [{"gpu": 3, "compute": 0.2}]
    usual, slow = (run(tiny, trace, one, fidelity, **ELASTIC) for one in ((), slower))
    assert [one.kind for one in slow.changed] == ["hangs", "shrinks", "grows"]
    assert (end_times(slow) > end_times(usual)).mean() > 0.9
    # Lost and slow at once: while it is lost, it slows nobody down.
    lost = run(tiny, trace, [{"gpu": 2, "compute": 0.01, "at_s": 0.051, "for_s": 0.04}], fidelity)
    assert lost.requests["outcome"].eq("finished").all()


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_experts_that_move_are_priced_on_slower_ranks(tiny, fidelity):
    trace = tiny.trace(40, 300.0)
    moving = {"rebalancing": {"kind": "periodic", "every_s": 0.03, "host_s_per_layer": 0.0}}
    usual, slow = (
        run(tiny, trace, one, fidelity, **moving)
        for one in ((), [{"gpu": 3, "compute": 0.2, "scale_up": 0.1}])
    )
    assert usual.rebalances
    assert slow.rebalances
    assert (end_times(slow) > end_times(usual)).mean() > 0.9
    # The links of the slower rank carry the experts as well.
    rate = [move.num_bytes / move.seconds for move in (usual.rebalances[0], slow.rebalances[0])]
    assert rate[1] < 0.5 * rate[0]


def test_a_cluster_file_names_slower_gpus_as_well(tiny, tmp_path, monkeypatch):
    """Those beyond a deployment's GPUs do not matter to it."""
    (tmp_path / "cluster_configs").mkdir()
    (tmp_path / "cluster_configs/worn.toml").write_text(
        'title = "worn"\nbased_on = "h100-sxm"\n'
        "degraded = [{ gpu = 0, compute = 0.5 }, { gpu = 40, compute = 0.5 }]\n"
    )
    monkeypatch.chdir(tmp_path)
    trace = tiny.trace(10)
    worn = end_times(run(tiny, trace, (), cluster="worn-16"))
    named = end_times(run(tiny, trace, [{"gpu": 0, "compute": 0.5}]))
    np.testing.assert_array_equal(worn, named)


@pytest.mark.parametrize("degraded", [SLOW_GPU, SLOW_CARD, MIXED], ids=["gpu", "card", "mixed"])
def test_a_run_tells_the_error_of_prices_of_what_is_slower(tiny, degraded):
    trace = tiny.trace(60, 80.0, longest_input=400, longest_output=16)
    record = make_record(run(tiny, trace, degraded, replicas=1))
    audit = record.changed_audit
    assert 5 <= audit.num_steps <= 20
    assert abs(audit.mean) < 0.03
    assert "audit.slowed" in {one.kind for one in find_errors(record)}
    assert make_record(run(tiny, trace, (), replicas=1)).changed_audit is None
