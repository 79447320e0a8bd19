"""Counterparts hold in PyTorch what their specs count: parameters and FLOPs."""

# ruff: noqa: E402 (what follows needs torch, and is skipped without)

import pytest

torch = pytest.importorskip("torch", reason="needs pip install 'moesim[real]'")

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simulator.config.pairing import MoeOf
from simulator.deployment.counterparts import make_dense, make_moe
from simulator.deployment.equal.active_params import ActiveParams
from simulator.deployment.equal.quality import Quality
from simulator.deployment.equal.total_params import TotalParams
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import weights_from
from simulator.work.flops import matmul_flops_per_token
from tests.runtime.small_models import SPECS, tokens

pytestmark = pytest.mark.usefixtures("no_gradients")
MEASURES = {"total": TotalParams(), "active": ActiveParams(), "quality": Quality(tokens=1e6)}
MIXTURES = ["experts", "shared experts", "experts, not gated, biases", "layers without a half"]
WIDE = {"hidden_size": 96, "vocab_size": 40}
"""Sizes at which a whole number of features comes within 1 % of a measure."""


def counterpart(name, measure):
    table = SPECS[name].model_dump() | WIDE
    for key in {"intermediate_size", "shared_intermediate_size"} & set(table["ffns"]["f"]):
        table["ffns"]["f"][key] *= 16
    reference = SPECS[name].model_validate(table)
    wanted = MEASURES[measure].make_measure(reference, "test")
    if reference.moe is not None:
        return make_dense(reference, wanted, "test").model
    asked = MoeOf.model_validate(
        {"model": "small", "equal": "quality", "num_experts": 4, "top_k": 2}
    )
    return make_moe(reference, asked, wanted, "test").model


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", [*MIXTURES, "dense", "dense, every bias"])
def test_pytorch_counts_the_same_parameters_and_flops(name, measure):
    model = counterpart(name, measure)
    layers = Transformer(model)
    assert sum(one.numel() for one in layers.parameters()) == model.num_parameters
    layers.load(weights_from(None, 3))
    mixers = [model.mixers[mixer] for mixer, _ in model.layer_names if mixer != "none"]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        layers(tokens(6), Chunk(1, 6, 0))
    square = 36 * sum(mixer.context_terms()[0].decode_flops_per_pair for mixer in mixers)
    matrices = counter.get_total_flops() - square
    assert matrices == 6 * matmul_flops_per_token(model, with_head=False)
