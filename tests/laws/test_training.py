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
from simulator.deployment.training.plan import make_training_plan
from simulator.engine.training.step import run_training_step
from simulator.results.training import PARTS
from simulator.scenario.training import load_training
from simulator.step.training import price_micro_batch
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


def plan_of(**changes):
    deployment = BASE["deployments"][0] | changes
    scenario = load_training(BASE | {"deployments": [deployment]})
    spec = scenario.deployments[0]
    return make_training_plan(spec, scenario.training, 0, "test", Path())


def step_of(plan):
    return run_training_step(plan, price_micro_batch(plan))


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
    plan = plan_of(model="llama-3.1-8b", parallel={"pp": 4})
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
    count = load_model("llama-3.1-8b", "test").num_parameters
    for zero, (weights, gradients, states) in enumerate(
        [(2, 4, 12), (2, 4, 12 / 8), (2, 4 / 8, 12 / 8), (2 / 8, 4 / 8, 12 / 8)]
    ):
        memory = measure_memory(plan_of(**changes, zero=zero))
        assert memory.weights_bytes == pytest.approx(weights * count)
        assert memory.gradients_bytes == pytest.approx(gradients * count)
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

    def days(**changes):
        deployment = BASE["deployments"][0] | changes
        return float(train(BASE | {"deployments": [deployment]}).summary["days"].iloc[0])

    first, last = days(routing=skewed), days(routing=even)
    later = days(routing=skewed, later=[{"after_tokens": 2.5e11, "routing": even}])
    assert later == pytest.approx(0.25 * first + 0.75 * last, rel=1e-9)
    assert last < later < first


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_gpus": 12}, "must be whole nodes of 8, such as 8 or 16"),
        ({"parallel": {"tp": 3}}, r"tp x cp x pp \(3\) must divide num_gpus \(16\)"),
        ({"parallel": {"pp": 4, "ep": 8}}, r"ep \(8\) must divide the 4 GPUs of a stage"),
        ({"micro_batch": 5}, r"must divide the global_batch \(64\), as it does 40"),
        ({"pipelining": {"kind": "dualpipe_v"}, "micro_batch": 4}, "at least twice as many"),
        ({"model": "llama-3.1-8b"}, "is dense and has no experts"),
        ({"later": [{"after_tokens": 1e10, "routing": {"kind": "uniformm"}}]}, "did you mean"),
    ],
)
def test_refusals_say_what_would_do(changes, error):
    deployment = BASE["deployments"][0] | changes
    with pytest.raises(UserError, match=error):
        train(BASE | {"deployments": [deployment]})


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
    assert "reaches a loss of" in results.run["verdict"]["headline"]
    assert any("beyond what it was fitted on" in note for note in results.run["notes"])


def test_a_law_that_says_nothing_of_losses_or_of_mixtures_is_refused_with_one_that_does():
    for law in ("geometric-mean", "chinchilla", "routed-hash"):
        with pytest.raises(UserError, match="joint-moe"):
            train_to_loss(law=law)
    with pytest.raises(UserError, match="none of that name; did you mean 'MoE'"):
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
