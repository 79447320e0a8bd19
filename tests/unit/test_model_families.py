"""Models whose makers say how they differ from an earlier one, or what a printed size counts."""

import pytest

from simulator.config.model import load_model


@pytest.mark.parametrize(
    ("name", "earlier"),
    [
        ("llama-3.3-70b", "llama-3.1-70b"),
        ("deepseek-v3.1", "deepseek-v3"),
        ("kimi-k2.5", "kimi-k2"),
        ("minimax-m2", "minimax-m2.5"),
    ],
)
def test_other_weights_of_the_same_shape_are_the_same_matrices(name, earlier):
    model, same = load_model(name, "test"), load_model(earlier, "test")
    assert (model.mixers, model.ffns, model.layers) == (same.mixers, same.ffns, same.layers)
    assert model.num_active_parameters == same.num_active_parameters


def test_sparse_attention_adds_an_indexer_to_every_layer():
    model, dense = load_model("deepseek-v3.2", "test"), load_model("deepseek-v3", "test")
    # Queries from the latent, keys with a LayerNorm, and a weight for each of 64 heads.
    indexer = 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64
    assert model.num_parameters - dense.num_parameters == 61 * indexer
    attended, scored = model.mixers["latent"].context_terms()
    assert (attended.window, scored.window) == (2048, None)
    assert scored.cached_elements_per_entry == 128


def test_what_is_printed_of_scout_counts_its_vision_tower():
    model = load_model("llama-4-scout", "test")
    layer = 4 * 1408**2 + 2 * 1408 * 5632  # configuration_llama4.py of transformers
    projector = 5632 * 4096 + 4096 * 4096 + 4096 * 5120
    tower = 34 * layer + projector + 3 * 14 * 14 * 1408
    assert model.num_parameters + tower == pytest.approx(109e9, rel=0.01)
    assert model.num_moe_layers == model.num_layers == 48


def test_what_is_printed_of_glm_leaves_embeddings_out_and_counts_its_prediction_layer():
    model = load_model("glm-4.6", "test")
    tables = model.num_embedding_parameters + model.num_head_parameters
    moe = model.ffns["moe"].num_parameters(5120)
    prediction = model.mixers["full"].num_parameters(5120) + moe + 2 * 5120**2
    assert model.num_parameters - tables + prediction == pytest.approx(355e9, rel=0.002)


@pytest.mark.parametrize(
    ("name", "full", "linear"), [("qwen3-next-80b-a3b", 12, 36), ("qwen3.5-397b-a17b", 15, 45)]
)
def test_every_fourth_layer_of_the_hybrids_keeps_a_cache(name, full, linear):
    model = load_model(name, "test")
    mixers = [mixer for mixer, _ in model.layer_names]
    assert (mixers.count("full"), mixers.count("linear")) == (full, linear)
    assert mixers[:4] == ["linear", "linear", "linear", "full"]
    assert (model.moe.num_experts, model.moe.top_k) == (512, 10)
