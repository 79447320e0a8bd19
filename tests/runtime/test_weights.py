"""Where weights come from: files that make the same model, and seeds."""

import math

import pytest
import torch

from simulator.base.errors import UserError
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import (
    SafetensorsWeights,
    SeededWeights,
    save_weights,
    weights_from,
)
from tests.runtime.small_models import PLAIN, SPECS, tokens

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("name", [*SPECS, *PLAIN])
def test_saved_weights_make_the_same_model(loaded, name, tmp_path):
    model, path = loaded(name), tmp_path / "model.safetensors"
    save_weights(model.named_weights(), path)
    assert path.stat().st_size < 4 * model.model.num_parameters + 20_000  # nothing is stored twice
    again = Transformer(model.model)
    again.load(weights_from(str(path), seed=9))
    (found, ids), (expected, used) = (each(tokens(6), Chunk(2, 3, 0)) for each in (again, model))
    assert torch.equal(found, expected)
    assert torch.equal(ids, used)
    assert torch.equal(again.logits(found), model.logits(expected))


def test_a_weight_that_is_missing_or_has_another_shape_is_named_with_its_file(loaded, tmp_path):
    path = tmp_path / "model.safetensors"
    weights = dict(loaded("experts").named_weights())
    del weights["layers.1.ffn.experts.7.up"]
    save_weights(iter(weights.items()), path)
    with pytest.raises(
        UserError,
        match=r"model\.safetensors: weight 'layers\.1\.ffn\.experts\.7\.up' cannot be read",
    ):
        Transformer(SPECS["experts"]).load(SafetensorsWeights(path))
    save_weights(iter({**weights, "layers.0.mixer.qkv": torch.zeros(3, 24)}.items()), path)
    with pytest.raises(
        UserError,
        match=r"model\.safetensors: weight 'layers\.0\.mixer\.qkv' must be \[48, 24\], is \[3, 24\]",
    ):
        Transformer(SPECS["experts"]).load(SafetensorsWeights(path))
    path.write_bytes(b"not a file of weights")
    for wrong in (path, tmp_path / "absent.safetensors"):
        with pytest.raises(UserError, match=rf"{wrong.name}: weight 'embedding' cannot be read"):
            Transformer(SPECS["experts"]).load(SafetensorsWeights(wrong))


def test_a_seeds_weight_depends_on_seed_and_name_alone():
    first = SeededWeights(3).tensor("layers.0.ffn.up", (30, 20))
    other = SeededWeights(3)
    other.tensor("layers.1.ffn.up", (7, 5))
    torch.randn(11)
    assert torch.equal(other.tensor("layers.0.ffn.up", (30, 20)), first)
    drawn = [
        SeededWeights(seed).tensor(name, (30, 20))
        for seed in (0, 3, 4, 2**32 + 3, -1)
        for name in ("a.up", "a.down", "b.up")
    ]
    for i, one in enumerate(drawn):
        assert all(
            abs(float(torch.corrcoef(torch.stack([one, two]).flatten(1))[0, 1])) < 0.2
            for two in drawn[:i]
        )


def test_a_seeds_matrices_are_normal_with_variance_one_over_their_inputs_and_vectors_do_nothing():
    matrix = SeededWeights(3).tensor("layers.0.ffn.up", (500, 400))
    values = (matrix * 400**0.5).flatten().sort().values.double()
    normal = torch.distributions.Normal(0.0, 1.0).cdf(values)
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    assert float((normal - steps).abs().max()) < 1.95 / math.sqrt(
        len(values)
    )  # Kolmogorov-Smirnov at 0.1 %
    assert SeededWeights(3).tensor("layers.0.mixer_norm", (9,)).unique().tolist() == [1]
    assert SeededWeights(3).tensor("layers.0.ffn.up_bias", (9,)).unique().tolist() == [0]


def test_no_two_weights_of_a_large_model_are_drawn_alike():
    """Experts of a layer of DeepSeek-V3."""
    weights = SeededWeights(0)
    names = [
        f"layers.{layer}.ffn.experts.{e}.{leaf}"
        for layer in range(3, 61)
        for e in range(256)
        for leaf in ("up", "down")
    ]
    assert len({tuple(weights.tensor(name, (1, 3))[0].tolist()) for name in names}) == len(names)
