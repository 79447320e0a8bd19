"""Laws of simulated training: parts add up to the step, memory to the GPU, and every lever moves
what it must.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.commands.train import train
from simulator.config.law_file import load_law, measure_size
from simulator.config.model import load_model
from simulator.deployment.training.memory import count_stage, find_room, measure_memory
from simulator.deployment.training.plan import expand_layout, make_training_plan
from simulator.engine.training import run_training_step
from simulator.policies.contracts import find_schedule_fault
from simulator.policies.pipelining import Pass, place_in_turn
from simulator.results.training import PARTS
from simulator.scenario.jobs import SCENARIOS, load_job
from simulator.step.training import price_micro_batch, price_update
from simulator.work.flops import matmul_flops_per_token, trained_flops

BASE = {
    "training": {"sequence_tokens": 2048, "global_batch": 64, "total_tokens": 1e12},
    "deployments": [
        {
            "name": "MoE",
            "model": "olmoe-1b-7b",
            "cluster": "h100-sxm",
            "num_gpus": 16,
            "parallel": {"pp": 2, "ep": 8},
        }
    ],
}


def plan_of(training=None, **changes):
    deployment = BASE["deployments"][0] | changes
    shared = BASE["training"] | (training or {})
    scenario = load_job({"training": shared, "deployments": [deployment]}, SCENARIOS)
    spec = scenario.deployments[0]
    return make_training_plan(spec, scenario.training, 0, "test", Path())


def step_of(plan):
    return run_training_step(plan, price_micro_batch(plan))


def trained(name, **changes):
    """A figure of the summary of a training."""
    deployment = BASE["deployments"][0] | changes
    return float(train(BASE | {"deployments": [deployment]}).summary[name].iloc[0])


def step_s(**changes):
    return step_of(plan_of(**changes)).step_s


VARIANTS = {
    "as it is": {},
    "dense": {"model": "llama-3.1-8b", "parallel": {"tp": 2, "pp": 2}},
    "one GPU": {"model": "qwen3-8b", "num_gpus": 1, "parallel": {}},
    "sequences shared": {"model": "llama-3.1-8b", "parallel": {"tp": 2, "cp": 2, "pp": 2}},
    "chunks": {"pipelining": {"kind": "interleaved", "chunks": 4}},
    "weights later": {"pipelining": {"kind": "zero_bubble"}},
    "both ways": {"pipelining": {"kind": "dualpipe_v"}},
    "weights shared": {"zero": 3, "parallel": {"ep": 8}},
    "made again": {"recompute": "full"},
    "nothing hidden": {"overlap_gradients": False},
    "drops": {"overflow": {"kind": "capacity", "factor": 1.0}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_parts_of_a_step_add_up_on_every_stage_and_its_timeline_has_no_overlaps(name):
    plan = plan_of(**VARIANTS[name])
    step = step_of(plan)
    for stage, parts in enumerate(step.parts_S):
        assert tuple(parts) == PARTS
        assert sum(parts.values()) == pytest.approx(step.step_s, rel=1e-9)
        assert min(parts.values()) >= 0.0
        own = sorted((s for s in step.spans if s.stage == stage), key=lambda span: span.start_s)
        for before, after in itertools.pairwise(own):
            assert after.start_s >= before.start_s + before.duration_s - 1e-9
        busy_s = sum(span.duration_s for span in own)
        assert busy_s == pytest.approx(step.step_s - parts["bubble"], rel=1e-6)
    assert max(span.start_s + span.duration_s for span in step.spans) == pytest.approx(step.step_s)
    again = step_of(plan_of(**VARIANTS[name]))
    assert again.step_s == step.step_s


def test_the_bubble_of_equal_stages_is_its_closed_form():
    """Llama 3.1 8B without its head, which only the last stage has: stages of equal layers."""
    plan = plan_of(model="llama-3.1-8b", num_gpus=8, parallel={"pp": 4})
    step = step_of(plan)
    p, m = 4, plan.num_micro_batches
    spans = [span for span in step.spans if span.stage == 0 and span.micro_batch >= 0]
    own_s = sum(span.duration_s for span in spans)
    last = [span for span in step.spans if span.stage == p - 1 and span.micro_batch >= 0]
    last_s = sum(span.duration_s for span in last)
    # The last stage is the slowest and waits for a micro-batch of each other one, there and back.
    assert last_s > own_s
    assert step.parts_S[-1]["bubble"] == pytest.approx((p - 1) * own_s / m, rel=0.05)


def test_every_lever_moves_the_step_as_it_must():
    usual = step_s()
    assert step_s(recompute="full") > usual
    assert step_s(backward_ratio=2.5) > usual
    assert step_s(overlap_gradients=False) >= usual
    assert step_s(routing={"kind": "uniform"}) < usual
    assert step_s(pipelining={"kind": "zero_bubble"}) < usual
    assert step_s(pipelining={"kind": "dualpipe_v"}) < usual
    assert step_s(num_gpus=32) < usual
    even, dropped = (
        step_s(overflow={"kind": "capacity", "factor": factor}) for factor in (100.0, 1.0)
    )
    assert even == pytest.approx(usual, rel=0.01)
    assert dropped < usual


def test_memory_is_the_sum_of_what_papers_count():
    """Adam with fp32 states: 2 + 4 + 12 bytes a parameter (ZeRO, section 3.1, with gradients in
    fp32), and each stage of ZeRO divides its part by the ranks."""
    changes = {"model": "llama-3.1-8b", "parallel": {}, "num_gpus": 8}
    model = load_model("llama-3.1-8b", "test")
    count, hidden = model.num_parameters, model.hidden_size
    layer = sum(
        one.num_parameters(hidden) + hidden
        for one in (*model.mixers.values(), *model.ffns.values())
    )
    largest = (
        layer + model.num_embedding_parameters + hidden
    )  # the last one, with its norm and head
    for zero, (weights, gradients, states) in enumerate(
        [(2, 4, 12), (2, 4, 12 / 8), (2, 4 / 8, 12 / 8), (2 / 8, 4 / 8, 12 / 8)]
    ):
        memory = measure_memory(plan_of(**changes, zero=zero))
        gathered = largest if zero == 3 else 0.0  # by ZeRO 3, two layers whole, one's gradients
        assert memory.weights_bytes == pytest.approx(weights * count + 4 * gathered)
        assert memory.gradients_bytes == pytest.approx(gradients * count + 4 * gathered)
        assert memory.optimizer_bytes == pytest.approx(states * count)
    kept = [
        measure_memory(plan_of(**changes, recompute=way)).activations_bytes
        for way in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert measure_memory(plan_of(), 2.0).total_bytes > measure_memory(plan_of(), 1.0).total_bytes


@pytest.mark.parametrize("model", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "llama-3.1-8b"])
def test_stages_hold_all_parameters_between_them(model):
    spec = load_model(model, "test")
    assert spec.num_layers >= 4
    for pp in (1, 4):
        plan = plan_of(model=model, num_gpus=8, parallel={"pp": pp})
        held = [count_stage(plan, stage) for stage in range(pp)]
        assert sum(one.dense + one.expert for one in held) == pytest.approx(spec.num_parameters)


def test_126_layers_on_16_stages_of_8_chunks_leave_the_ends_to_embedding_and_head():
    """Megatron-Core counts the embedding table and the output matrix as layers then
    (``account_for_embedding_in_pipeline_split``, ``account_for_loss_in_pipeline_split``): 126 + 2
    are 128 chunks.
    """
    keys = {"model": "llama-3.1-405b", "num_gpus": 512}
    parallel = {"tp": 4, "pp": 16}
    chunks = {"pipelining": {"kind": "interleaved", "chunks": 8}}
    plan = plan_of(**keys, **chunks, parallel=parallel, training={"global_batch": 128})
    assert [len(chunk.layers) for chunk in plan.chunks] == [0] + [1] * 126 + [0]
    # Stage 0 has the empty first chunk and a layer in seven others, the last stage likewise.
    model = load_model("llama-3.1-405b", "test")
    held = [sum(count_stage(plan, stage)) for stage in range(16)]
    assert 4 * sum(held) == pytest.approx(model.num_parameters, rel=1e-3)
    layer = held[1] / 8
    assert held[0] == pytest.approx(7 * layer + model.num_embedding_parameters / 4)
    said = {**parallel, "layout": "E|(t|)*126,L"}
    again = plan_of(**keys, **chunks, parallel=said, training={"global_batch": 128})
    assert again.chunks == plan.chunks


@pytest.mark.parametrize(
    "layout", ["Et*5|t*3|t*5|t*3L", "E||t*8|t*8L", "E(tt,|)*3t*10L", "Et*16||| L"]
)
def test_a_layout_moves_layers_and_neither_work_nor_parameters(layout):
    """Uneven chunks, empty ones, and a stage that has no layer at all."""
    keys = {"pipelining": {"kind": "interleaved", "chunks": 2}}
    parallel = BASE["deployments"][0]["parallel"]
    even, own = plan_of(**keys), plan_of(**keys, parallel={**parallel, "layout": layout})
    counts = [part.count("t") for part in expand_layout(layout, "test")]
    assert [len(chunk.layers) for chunk in own.chunks] == counts
    assert [layer for chunk in own.chunks for layer in chunk.layers] == list(range(16))
    for count in (lambda one: one.dense, lambda one: one.expert):
        held, usual = (
            sum(count(count_stage(plan, stage)) for stage in range(2)) for plan in (own, even)
        )
        assert held == pytest.approx(usual)
    steps = [step_of(plan) for plan in (own, even)]
    for part in ("attention", "dense", "experts", "dispatch", "combine"):
        busy, usual = (step.mean_parts[part] for step in steps)
        assert busy == pytest.approx(usual, rel=1e-6)
    stages = [counts[0] + counts[2], counts[1] + counts[3]]
    if max(stages) > 9:
        assert steps[0].step_s > 1.1 * steps[1].step_s
    assert measure_memory(own).total_bytes > 0.0


RACKS = {
    "cluster": "gb200",
    "model": "qwen3-30b-a3b",
    "routing": {"kind": "uniform"},
    "training": {"global_batch": 2304, "sequence_tokens": 4096},
}
"""Racks of 72 GPUs in trays of 4."""


@pytest.mark.parametrize(
    ("num_gpus", "nodes"), [(4, 1), (64, 1), (72, 1), (128, 2), (144, 2), (192, 3), (256, 4)]
)
def test_gpus_lie_equally_on_the_fewest_racks_that_hold_them(num_gpus, nodes):
    training = RACKS["training"] | {"global_batch": num_gpus}
    plan = plan_of(**RACKS | {"training": training}, num_gpus=num_gpus, parallel={"ep": 4})
    assert plan.cluster.gpus_per_node == num_gpus // nodes
    assert plan.cluster.num_nodes == nodes
    assert plan.dp == num_gpus


def test_groups_are_priced_by_the_links_that_they_cross():
    """Gradients of 128 GPUs: within a rack for 64, then between racks by as many cards as a rack
    has ranks of the group. The reduce-scatter takes at least the bytes that cross over the cards.
    """
    pieces = {"parallel": {"ep": 32}, "num_gpus": 128}
    two, four = plan_of(**RACKS, **pieces), plan_of(**RACKS, **pieces, gpus_per_node=32)
    assert (two.cluster.num_nodes, four.cluster.num_nodes) == (2, 4)
    held, card = count_stage(two, 0), two.cluster.scale_out.bytes_per_s
    for plan, ranks, copies in ((two, 64, 2), (four, 32, 1)):
        crossing = 4 * (held.dense * 127 / 128 / ranks + held.expert * 3 / 4 / copies) / card
        taken = price_update(plan, 0).reduce_s
        assert crossing <= taken < 2.0 * crossing
    alone = plan_of(**RACKS, num_gpus=64, parallel={"ep": 32})
    assert price_update(alone, 0).reduce_s < 0.5 * price_update(two, 0).reduce_s


def test_a_stage_waits_for_the_block_that_lies_across_racks():
    """144 GPUs on two racks of 72: experts over 16 GPUs have one group of nine on both, over 12
    none. With 64 of each rack's 72 no group of 16 crosses.
    """
    inside = plan_of(**RACKS, num_gpus=144, parallel={"ep": 12})
    across = plan_of(**RACKS, num_gpus=144, parallel={"ep": 16})
    assert inside.placement.fabric.num_nodes == 1
    assert across.placement.fabric.node_R.tolist() == [0] * 8 + [1] * 8
    spared = plan_of(**RACKS, num_gpus=128, parallel={"ep": 16})
    assert spared.placement.fabric.num_nodes == 1
    near, far = (
        step_of(plan).mean_parts["dispatch"] / plan.num_micro_batches for plan in (spared, across)
    )
    assert far > 1.2 * near


def test_stages_send_over_the_links_between_them():
    """Stages of 4 GPUs on nodes of 8: every other boundary lies between nodes; of 8, all do."""
    keys = {"model": "llama-3.1-8b", "num_gpus": 32}
    plan = plan_of(**keys, parallel={"pp": 8})
    num_bytes = np.array([1e8])
    near, far = (plan.sends[pair].seconds(num_bytes)[0] for pair in ((0, 1), (1, 2)))
    card, port = plan.cluster.scale_out.bytes_per_s, plan.cluster.scale_up.bytes_per_s
    assert 1e8 / port < near < 1e8 / card < far
    assert plan.sends[2, 3].seconds(num_bytes)[0] == plan.sends[3, 2].seconds(num_bytes)[0] == near
    whole = plan_of(**keys, parallel={"pp": 4})
    assert {float(one.seconds(num_bytes)[0]) for one in whole.sends.values()} == {far}


def test_trained_flops_are_six_for_each_weight_and_what_attention_takes():
    model = load_model("llama-3.1-8b", "test")
    short, long = (trained_flops(model, tokens) / tokens for tokens in (1, 4096))
    assert short == pytest.approx(3 * matmul_flops_per_token(model, with_head=True), rel=1e-4)
    heads = model.mixers["full"]
    pairs = 4.0 * heads.num_heads * heads.head_size * (4096 + 1) / 2
    assert long - short == pytest.approx(3 * model.num_layers * pairs, rel=1e-3)


def test_a_later_routing_changes_the_days_and_nothing_else():
    even = {"kind": "uniform"}
    skewed = {"kind": "lognormal", "sigma": 1.0}

    first, last = trained("days", routing=skewed), trained("days", routing=even)
    later = trained("days", routing=skewed, later=[{"after_tokens": 2.5e11, "routing": even}])
    assert later == pytest.approx(0.25 * first + 0.75 * last, rel=1e-9)
    assert last < later < first


def test_what_does_not_fit_is_refused_with_what_does():
    deployment = {
        **BASE["deployments"][0],
        "model": "llama-3.1-8b",
        "num_gpus": 8,
        "parallel": {},
        "zero": 0,
        "micro_batch": 4,
    }
    scenario = BASE | {"deployments": [deployment]}
    with pytest.raises(UserError, match=r"needs .* GB a GPU .* free; (.*) fits") as refused:
        train(scenario)
    offered = str(refused.value).split("are free; ")[1].removesuffix(" fits")
    changes = dict(part.split(" = ") for part in offered.split(", "))
    changed = {key: value.strip('"') for key, value in changes.items()}
    if "zero" in changed:
        changed["zero"] = int(changed["zero"])
    plan = plan_of(**{**deployment, **changed})
    assert measure_memory(plan).total_bytes <= find_room(plan)
    assert np.isfinite(train(BASE | {"deployments": [deployment | changed]}).summary["mfu"]).all()


def train_to_loss(**quality):
    base = BASE["deployments"][0]
    deployments = [
        base,
        base | {"name": "dense", "model": "llama-3.1-8b", "parallel": {"tp": 2, "pp": 2}},
        base | {"name": "small", "model": "llama-2-7b", "parallel": {"tp": 2}},
    ]
    training = BASE["training"] | {"quality": {"as_good_as": "MoE"} | quality}
    return train({"training": training, "deployments": deployments})


def test_models_train_to_one_loss_by_the_law_that_is_named():
    results = train_to_loss()
    rows = results.summary.set_index("deployment")
    law = load_law("joint-moe", "test").law
    reached = [
        law.predict_loss(measure_size(load_model(model, "test")), rows.loc[name, "tokens"])
        for name, model in (("MoE", "olmoe-1b-7b"), ("dense", "llama-3.1-8b"))
    ]
    assert reached == pytest.approx([reached[0]] * 2, rel=1e-9)
    assert rows.loc["MoE", "tokens"] == pytest.approx(1e12)
    assert rows.loc["dense", "tokens"] < 1e12  # more parameters a token
    days = rows["tokens"] / rows["tokens_per_s"] / 86_400
    assert days.tolist() == pytest.approx(rows["days"].tolist())
    assert any("beyond what it was fitted on" in note for note in results.run["notes"])


def test_a_law_that_says_nothing_of_losses_or_of_mixtures_is_refused_with_one_that_does():
    for law in ("geometric-mean", "chinchilla", "routed-hash"):
        with pytest.raises(UserError, match="joint-moe"):
            train_to_loss(law=law)
    with pytest.raises(UserError, match="neither a deployment nor a model; did you mean 'MoE'"):
        train_to_loss(as_good_as="MoEE")


def test_a_dense_counterpart_trains_as_the_model_that_it_is():
    made = {"model": "olmoe-1b-7b", "equal": "active_params"}
    deployment = {**BASE["deployments"][0], "parallel": {"pp": 2}, "dense_of": made}
    del deployment["model"]
    results = train(BASE | {"deployments": [deployment]})
    facts = results.run["deployments"]["MoE"]
    assert not facts["is_moe"]
    own = load_model("olmoe-1b-7b", "test")
    assert facts["active_parameters"] == pytest.approx(own.num_used_parameters, rel=0.01)


def test_dropped_pairs_are_no_model_flops():
    usual = trained("mfu")
    for factor in (0.1, 0.5, 1.0):
        assert trained("mfu", overflow={"kind": "capacity", "factor": factor}) < 1.5 * usual


def test_zero_2_and_3_pay_for_every_micro_batch_and_zero_3_has_room_for_a_layer():
    shared = {"model": "llama-3.1-8b", "parallel": {"pp": 2}, "num_gpus": 16}
    steps = [step_s(**shared, zero=zero, overlap_gradients=False) for zero in (1, 2, 3)]
    assert steps == sorted(set(steps))
    plan = plan_of(model="llama-3.1-8b", parallel={}, num_gpus=16, zero=3)
    model = load_model("llama-3.1-8b", "test")
    layer = max(
        model.mixers["full"].num_parameters(4096) + model.ffns["dense"].num_parameters(4096),
        model.num_embedding_parameters,
    )
    assert measure_memory(plan).weights_bytes > 2 * (model.num_parameters / 16 + 2 * layer)


def test_all_routings_of_a_training_are_checked_before_a_step_is_simulated(monkeypatch):
    monkeypatch.setattr("simulator.commands.train.run_training_step", None)
    wrong = [{"after_tokens": 1e10, "routing": {"kind": "zpf", "exponent": 1.0}}]
    with pytest.raises(UserError, match="zipf"):
        train(BASE | {"deployments": [BASE["deployments"][0] | {"later": wrong}]})


def test_memory_has_room_for_the_worst_routing():
    even, skewed = {"kind": "uniform"}, {"kind": "zipf", "exponent": 1.2}
    changed = [{"after_tokens": 1e10, "routing": skewed}]
    later = trained("memory_bytes", routing=even, later=changed)
    assert later == pytest.approx(trained("memory_bytes", routing=skewed))
    assert later > trained("memory_bytes", routing=even)


def test_fp32_takes_twice_the_memory_of_weights_and_time_is_above_0():
    wide, narrow = (measure_memory(plan_of(dtype=dtype)) for dtype in ("fp32", "bf16"))
    assert wide.weights_bytes == 2 * narrow.weights_bytes
    assert wide.activations_bytes > narrow.activations_bytes
    with pytest.raises(UserError, match="above 0"):
        plan_of(uptime=0.0)


@pytest.mark.parametrize(
    ("turns", "error"),
    [
        ([("forward", 0)], "1 times forward, 0 backward"),
        ([("forward", 0), ("forward", 0), ("backward", 0)], "2 times forward"),
        ([("forward", 0), ("input", 0)], "1 input, 0 weight"),
        ([("forward", 0), ("input", 0), ("weight", 0)], None),
    ],
)
def test_a_schedule_that_forgets_passes_is_told(turns, error):
    class Own:
        def place_chunks(self, num_stages):
            return place_in_turn(num_stages, 1)

        def list_turns(self, stage, num_stages, num_micro_batches):
            return iter([(Pass(*one),) for one in turns])

    found = find_schedule_fault(Own(), 2, 1)
    assert found is None if error is None else error in found
