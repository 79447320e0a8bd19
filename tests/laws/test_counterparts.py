"""A counterpart has what it was made to have, and else is what its reference is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.data import available_files
from simulator.config.deployment import DeploymentSpec
from simulator.config.law_file import load_law, measure_size
from simulator.config.model import load_model
from simulator.deployment.counterparts import choose_model
from simulator.work.flops import WHOLE, count_decode_step, release_precision
from simulator.work.memory import cache_size, weight_bytes
from tests.cases import cases

MODELS = {name: load_model(name, "test") for name in available_files("workloads/models")}
MIXTURES = [name for name, model in MODELS.items() if model.moe is not None]
DENSE = [name for name, model in MODELS.items() if model.moe is None]
LAWS = [name for name in available_files("workloads/laws") if not name.startswith("chinchilla")]


def made(key, model, equal, **more):
    entry = {"name": "one", key: {"model": model, "equal": equal, **more}, "cluster": "h100-sxm-8"}
    return choose_model(DeploymentSpec.model_validate(entry), "test")


def held_bytes(model):
    precision = release_precision(model)
    cache = cache_size(model, WHOLE, precision).bytes_for(8192)
    return weight_bytes(model, WHOLE, precision) + cache


@pytest.mark.parametrize("name", MIXTURES)
def test_dense_counterparts_have_equal_parameters(name):
    reference = MODELS[name]
    total, active = (made("dense_of", name, equal) for equal in ("total_params", "active_params"))
    assert total.num_parameters == pytest.approx(reference.num_parameters, rel=0.01)
    assert active.num_parameters == pytest.approx(reference.num_used_parameters, rel=0.01)
    assert total.num_used_parameters == total.num_parameters


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "qwen3-30b-a3b"])
def test_dense_counterparts_have_the_parameters_that_a_law_calls_equal(name, law):
    reference = MODELS[name]
    wanted = load_law(law, "test").find_equal_dense(measure_size(reference), 1e12)
    model = made("dense_of", name, {"kind": "quality", "law": law, "tokens": 1e12})
    assert model.num_parameters == pytest.approx(wanted, rel=0.01)
    assert load_law(law, "test").title in model.notes
    assert ("beyond what it was fitted on" in model.notes) == (law != "geometric-mean")


@pytest.mark.parametrize("name", MIXTURES)
def test_a_dense_counterpart_of_equal_memory_takes_as_many_bytes(name):
    model = made("dense_of", name, "memory")
    assert held_bytes(model) == pytest.approx(held_bytes(MODELS[name]), rel=0.01)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-120b"])
def test_a_counterpart_of_equal_cost_reads_as_many_bytes_where_reading_limits(name):
    """At one sequence every weight that is used is read once for two FLOPs: memory limits."""
    reference = MODELS[name]
    model = made("dense_of", name, {"kind": "cost", "sequences": 1, "context_tokens": 1024})
    read, wanted = (count_decode_step(one, 1, 1024) for one in (model, reference))
    wanted_bytes = wanted.weight_bytes + wanted.cache_bytes
    assert read.weight_bytes + read.cache_bytes == pytest.approx(wanted_bytes, rel=0.01)


@pytest.mark.parametrize("equal", ["total_params", "active_params", "quality", "memory"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_dense_counterpart_keeps_what_is_not_scaled(name, equal):
    reference, model = MODELS[name], made("dense_of", name, equal)
    assert model.moe is None
    assert model.vocab_size == reference.vocab_size
    assert model.weight_dtype == (reference.expert_dtype or reference.weight_dtype)
    assert {key: one.kind for key, one in model.mixers.items()} == {
        key: one.kind for key, one in reference.mixers.items()
    }
    shares = [
        {mixer: sum(1 for own, _ in one.layer_names if own == mixer) / one.num_layers}
        for one in (model, reference)
        for mixer in reference.mixers
    ]
    own, theirs = shares[: len(reference.mixers)], shares[len(reference.mixers) :]
    for mine, wanted in zip(own, theirs, strict=True):
        assert mine == pytest.approx(wanted, abs=1 / model.num_layers)
    widths = model.hidden_size / reference.hidden_size, model.num_layers / reference.num_layers
    assert widths[0] == pytest.approx(widths[1], rel=0.15)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_counterpart_of_equal_active_parameters_has_the_shape_of_a_tokens_path(name):
    reference, model = MODELS[name], made("dense_of", name, "active_params")
    assert abs(model.num_layers - reference.num_layers) <= 1
    assert model.hidden_size == pytest.approx(reference.hidden_size, rel=0.07)


@pytest.mark.parametrize("name", MIXTURES)
def test_equal_quality_lies_between_equal_active_and_equal_total(name):
    active, quality, total = (
        made("dense_of", name, equal).num_parameters
        for equal in ("active_params", "quality", "total_params")
    )
    if name != "stdlib-moe":  # far smaller than what the law was fitted on
        assert active < quality < total


@pytest.mark.parametrize("name", DENSE)
def test_a_mixture_for_a_dense_model_has_equal_parameters(name):
    reference = MODELS[name]
    total, active = (made("moe_of", name, equal) for equal in ("total_params", "active_params"))
    assert total.num_parameters == pytest.approx(reference.num_parameters, rel=0.01)
    assert active.num_used_parameters == pytest.approx(reference.num_parameters, rel=0.01)
    assert active.num_layers == reference.num_layers
    assert total.num_used_parameters < active.num_used_parameters < active.num_parameters
    assert (total.moe.num_experts, total.moe.top_k) == (64, 8)
    assert total.routing is not None


@cases(25)
@given(
    st.sampled_from(["llama-3.1-8b", "qwen3-32b"]),
    st.sampled_from([(4, 1), (8, 2), (16, 2), (64, 8), (128, 8), (256, 8), (384, 6)]),
    st.sampled_from(["total_params", "active_params", "quality", "memory"]),
)
def test_mixtures_of_any_experts_are_equal(name, experts, equal):
    num_experts, top_k = experts
    reference = MODELS[name]
    model = made("moe_of", name, equal, num_experts=num_experts, top_k=top_k)
    assert (model.moe.num_experts, model.moe.top_k) == experts
    measures = {
        "total_params": lambda one: one.num_parameters,
        "active_params": lambda one: one.num_used_parameters,
        "memory": held_bytes,
        "quality": lambda one: load_law("joint-moe", "test").find_equal_dense(
            measure_size(one), 20.0 * reference.num_used_parameters
        ),
    }
    assert measures[equal](model) == pytest.approx(measures[equal](reference), rel=0.01)
