"""Keys of named models, clusters, accelerators and engines that are changed in place."""

import pytest

from simulator.base.errors import UserError
from simulator.commands.plan import plan
from simulator.commands.run import run
from simulator.commands.sweep import sweep
from simulator.config.cluster import load_cluster, load_kind, name_size
from simulator.config.model import load_model
from simulator.config.named import join_name, split_name
from simulator.deployment.plan import make_plan
from simulator.scenario.jobs import load_scenario
from tests.laws import tiny_question

TOML = """
[workload]
num_requests = 8
requests.arrivals = { kind = "poisson", rate_per_s = 20.0 }
requests.lengths = { kind = "fixed", num_input = 64, num_output = 8 }

[[deployments]]
name = "own"
model = { base = "olmoe-1b-7b", layers.0.repeat = 4 }
cluster = "h100-sxm-8"
replicas = 1
"""
EXPERT = 3 * 2048 * 1024
"""Parameters of an expert of OLMoE."""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "small.toml").write_text(TOML)
    return tmp_path / "small.toml"


def make(path, *overrides):
    scenario = load_scenario(path, list(overrides))
    return make_plan(scenario.deployments[0], scenario.seed, "test", scenario.folder)


def refusal(path, override):
    with pytest.raises(UserError) as refused:
        make(path, override)
    return str(refused.value)


def test_a_table_with_a_base_is_the_file_with_other_keys(path):
    whole = load_model("olmoe-1b-7b", "test")
    model = make(path, "deployments.0.model.top_k=2").placement.model
    assert model.num_layers == 4
    assert model.moe.top_k == 2
    small = load_model("olmoe-1b-7b { layers.0.repeat = 4 }", "test")
    assert small.num_active_parameters - model.num_active_parameters == 4 * 6 * EXPERT
    assert model.title == f"{whole.title} with layers.0.repeat = 4, top_k = 2"
    assert (model.published, model.repositories) == (None, ())
    assert (model.mixers, model.routing) == (whole.mixers, whole.routing)


def test_a_policy_of_another_kind_replaces_the_files_own():
    uniform = load_model('olmoe-1b-7b { routing.kind = "uniform" }', "test")
    assert uniform.routing == {"kind": "uniform"}
    whole = load_model("olmoe-1b-7b", "test")
    skewed = load_model("olmoe-1b-7b { sigma = 1.5 }", "test")
    assert skewed.routing == whole.routing | {"sigma": 1.5}
    assert "Measured" in whole.routing_source
    assert "Measured" not in skewed.routing_source


def test_clusters_their_accelerators_and_engines_change_too(path):
    plain = make(path)
    changed = make(
        path,
        "deployments.0.cluster.scale_up.bytes_per_s=1e11",
        "deployments.0.cluster.accelerator.visible_memory_bytes=60e9",
        "deployments.0.engine.kv_block_tokens=64",
    )
    cluster = changed.placement.cluster
    assert cluster.name == changed.spec.cluster
    assert cluster.scale_up.bytes_per_s == 1e11
    assert cluster.scale_up.latency_s == plain.placement.cluster.scale_up.latency_s
    assert (plain.serving.capacity.block_tokens, changed.serving.capacity.block_tokens) == (16, 64)
    assert changed.placement.calibration == plain.placement.calibration
    assert changed.serving.capacity.tokens < 0.8 * plain.serving.capacity.tokens
    assert make(path, "deployments.0.cluster.num_gpus=16").placement.cluster.num_nodes == 2


def test_a_kind_of_machines_comes_in_its_sizes():
    name = 'h100-sxm { price_per_gpu_hour = 1.5, currency = "EUR" }'
    spec, _ = load_kind(name, "test")
    sized, _ = load_cluster(name_size(spec.name, 32), "test")
    assert (sized.num_gpus, sized.price_per_gpu_hour, sized.currency) == (32, 1.5, "EUR")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("deployments.0.model.tpo_k=4", "unknown key 'tpo_k'; did you mean 'top_k'?"),
        ("deployments.0.model.layers.1.repeat=4", "'1' must be 0, or * for every entry"),
        ("deployments.0.cluster.latency_s=0", "name one: scale_up.latency_s"),
        ("deployments.0.engine={ base = 'any', kv_block_tokens = 4 }", "'any' has no file"),
        ("deployments.0.cluster={ num_gpus = 8 }", "name one by base"),
        ("deployments.0.model='olmoe-1b-7b { top_k }'", "is no TOML table"),
    ],
)
def test_a_wrong_change_names_the_key(path, override, said):
    assert said in refusal(path, override)


def test_a_changed_key_is_swept_and_told(path, tmp_path):
    found = sweep(path, tmp_path / "out", {"deployments.0.model.top_k": [1, 64]}, workers=1)
    few, all_experts = found.table["tpot_mean_s"]
    assert few < 0.8 * all_experts
    told = run(load_scenario(path, {"deployments.0.model.top_k": 1})).run
    assert told["scenario"]["deployments"][0]["model"] == (
        "olmoe-1b-7b { layers.0.repeat = 4, top_k = 1 }"
    )
    again = load_scenario(told["scenario"] | {"name": "again"})
    assert make_plan(again.deployments[0], 0, "test", tmp_path).placement.model.moe.top_k == 1


def test_names_survive_being_written():
    changes = {"a": {"b.c": [1, {"d": 'x " {'}]}, "e": {}}
    assert split_name(join_name("models/own.toml", changes)) == ("models/own.toml", changes)


@pytest.mark.slow
def test_a_plan_recommends_what_is_changed(tmp_path):
    model = {"base": "llama-3.1-8b", "layers": {"0": {"repeat": 16}}}
    models = [{"model": model, "engine": {"base": "sglang", "kv_block_tokens": 4}}]
    clusters = [{"cluster": {"base": "h100-sxm", "price_per_gpu_hour": 1.25}, "max_gpus": 8}]
    asked = tiny_question.QUESTION | {"models": models, "clusters": clusters}
    answer = plan(asked, folder=tmp_path / "out", cache=tmp_path / "cache", workers=1)
    scenario = load_scenario(tmp_path / "out/recommended.toml")
    made = make_plan(scenario.deployments[0], 0, "test", tmp_path)
    placement = made.placement
    assert made.serving.capacity.block_tokens == 4
    assert placement.model.num_layers == 16
    assert placement.cluster.price_per_gpu_hour == 1.25
    assert answer.recommended.gpus == placement.cluster.num_gpus
