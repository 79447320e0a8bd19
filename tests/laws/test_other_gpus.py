"""GPUs of another kind in a group: what their ranks compute, at every fidelity, and what is
refused.
"""

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.commands.train import train
from simulator.deployment.notes import notes_of
from simulator.engine.timeline import make_record, serve
from simulator.scenario.jobs import load_question
from tests.laws.test_degraded import EP8, EP16, end_times
from tests.laws.test_explanations import explain
from tests.laws.test_one_price import price_both
from tests.laws.tiny_question import QUESTION

A100_NODE = [{"node": 1, "accelerator": "a100-sxm"}]
MIXED = [
    {"gpu": 3, "accelerator": "a100-sxm"},
    {"gpu": 9, "accelerator": "l40s", "compute": 0.8},
    {"node": 1, "scale_out": 0.5},
]
COMPUTED = ["attention_s", "dense_s", "experts_s"]


def run(tiny, trace, degraded=(), fidelity="step", model="moe", **keys):
    return serve(tiny.plan(model, degraded=degraded, **{"replicas": 1, **keys}), trace, fidelity)


@pytest.mark.parametrize("model", ["moe", "latent-moe", "sliding-dense"])
@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_a_cluster_of_the_other_kind_computes_as_long(tiny, model, fidelity):
    """All nodes of another kind: kernels are those of a cluster of that kind, to the last digit."""
    trace = tiny.trace(1, longest_output=9)  # alone, so that steps are the same
    split = {"tp": 1} if model == "sliding-dense" else dict(EP8)
    every = [{"node": node, "accelerator": "a100-sxm"} for node in (0, 1)]
    split["replicas"] = 16 if model == "sliding-dense" else 2
    other = run(tiny, trace, every, fidelity, model, **split)
    own = run(tiny, trace, (), fidelity, model, **split, cluster="a100-sxm-16")
    for column in COMPUTED:
        np.testing.assert_allclose(other.steps[column], own.steps[column], rtol=1e-12)


@pytest.mark.parametrize("fidelity", ["step", "rank", "message"])
def test_the_same_kind_by_its_name_changes_nothing(tiny, fidelity):
    trace = tiny.trace(8, 200.0, longest_output=6)
    named = [{"node": 1, "accelerator": "h100-sxm"}]
    ends = [end_times(run(tiny, trace, one, fidelity, **EP16)) for one in ((), named)]
    np.testing.assert_allclose(*ends, rtol=0.01 if fidelity == "step" else 1e-12)


@pytest.mark.parametrize("degraded", [A100_NODE, MIXED], ids=["node", "mixed"])
@pytest.mark.parametrize("model", ["moe", "sliding-moe"])
def test_the_table_is_what_ranks_take(tiny, monkeypatch, degraded, model):
    plan = tiny.plan(model, replicas=1, degraded=degraded, **EP16)
    trace = tiny.trace(60, 80.0, longest_input=400, longest_output=16)
    by_table, by_ranks = price_both(monkeypatch, plan, trace)
    assert by_table.sum() == pytest.approx(by_ranks.sum(), rel=0.02)


def test_the_more_gpus_are_older_the_later(tiny):
    trace = tiny.trace(12, 100.0, longest_output=12)
    old = [{"gpu": gpu, "accelerator": "a100-sxm"} for gpu in range(16)]
    rules = {"kind": "chunked", "rank_choice": "fewest"}  # the old GPU always has somebody
    last = [
        end_times(run(tiny, trace, old[:n], scheduling=rules, **EP16)).max() for n in (0, 1, 16)
    ]
    assert last == sorted(last)
    assert last[0] < last[1]
    # Everyone waits for the slowest, so the first old GPU costs most.
    assert last[1] - last[0] > last[2] - last[1]


def test_memory_is_that_of_the_smallest(tiny):
    blocks = [
        tiny.plan("moe", **EP16, replicas=1, degraded=one).serving.capacity.num_blocks
        for one in ((), [{"gpu": 5, "accelerator": "rtx-4090"}])
    ]
    assert 0 < blocks[1] < blocks[0] / 3
    small = [{"node": 1, "accelerator": "rtx-4090"}]
    two = tiny.plan("moe", **EP8, replicas=2, degraded=small)
    assert two.serving.capacity.num_blocks == pytest.approx(blocks[1], rel=0.01)
    every = [{"node": node, "accelerator": "rtx-4090"} for node in (0, 1)]
    both = tiny.plan("moe", **EP16, replicas=1, degraded=every)
    assert both.serving.capacity.num_blocks == blocks[1]


def test_a_prefill_pool_has_memory_for_wherever_it_lies(tiny):
    """Prompts are computed behind the decode pool's GPUs: those of node 1, which are smaller."""
    small = [{"node": 1, "accelerator": "rtx-4090"}]
    prefill = {"parallel": {"attention_dp": 8, "ep": 8}, "replicas": 1}
    plan = tiny.plan("moe", **EP8, replicas=1, prefill=prefill, degraded=small)
    usual = tiny.plan("moe", **EP8, replicas=1, prefill=prefill)
    found, whole = (
        [pool.serving.capacity.num_blocks for pool in one.pools] for one in (plan, usual)
    )
    assert found[0] == whole[0]
    assert found[1] < whole[1] / 3


@pytest.fixture
def both(tmp_path, monkeypatch):
    """A cluster of two kinds, beside where commands are run."""
    (tmp_path / "cluster_configs").mkdir()
    (tmp_path / "cluster_configs/both.toml").write_text(
        'title = "both"\nbased_on = "h100-sxm"\n'
        'degraded = [{ node = 1, accelerator = "a100-sxm" }]\n'
    )
    monkeypatch.chdir(tmp_path)
    return "both"


def test_a_plan_takes_machines_that_are_alike(both):
    question = QUESTION | {"clusters": [{"cluster": both, "max_gpus": 16}]}
    with pytest.raises(UserError, match="takes all machines to be alike; name a cluster without"):
        load_question(question)


def test_a_training_on_machines_that_differ_is_refused(both):
    deployment = {"name": "moe", "model": "olmoe-1b-7b", "cluster": both, "num_gpus": 16}
    training = {"sequence_tokens": 512, "global_batch": 16}
    with pytest.raises(UserError, match="not simulated in trainings; name a cluster without them"):
        train({"training": training, "deployments": [deployment]})


def test_it_is_a_piece_of_the_explanation_and_a_note(tiny):
    trace = tiny.trace(40, 200.0)
    (found,) = explain(tiny, tiny.plan("moe", **EP16, replicas=1, degraded=A100_NODE), trace)
    assert found.pieces["slow_gpus"] > 0
    assert found.pieces["slow_wires"] == 0
    plan = tiny.plan("moe", **EP16, replicas=1, degraded=A100_NODE)
    assert any(
        "each GPU of node 1 is of another kind, a100-sxm" in str(one) for one in notes_of(plan)
    )
    record = make_record(serve(plan, trace))
    assert abs(record.changed_audit.mean) < 0.03
