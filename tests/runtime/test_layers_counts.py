"""What the model's blocks hold and multiply is what the spec counts: parameters and FLOPs."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simulator.base.errors import UserError
from simulator.config.model import load_model
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.mixers.gqa import Cache
from simulator.runtime.layers.transformer import Transformer, check_executable
from simulator.work.flops import matmul_flops_per_token
from tests.runtime.small_models import DENSE, GQA, OTHERS, PLAIN, SPECS, inputs, spec, tokens

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("name", [*SPECS, *PLAIN, *OTHERS])
def test_a_model_has_exactly_the_parameters_that_its_spec_counts(loaded, name):
    model = loaded(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == model.model.num_parameters
    weights = dict(model.named_weights())
    assert sum(weight.numel() for weight in weights.values()) == model.model.num_parameters
    assert len(weights) == sum(1 for _ in model.named_weights())  # each name once


@pytest.mark.parametrize("name", PLAIN)
def test_shipped_models_of_these_kinds_can_be_executed_as_they_are(name):
    check_executable(load_model(name, "test"))


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (spec(DENSE, {**GQA, "has_output_gate": True}), "has_output_gate = True"),
        (spec(DENSE, norm_vectors=2), "LayerNorm"),
        (spec(DENSE, num_extra_parameters=5), "parameters outside its blocks"),
        ("gpt-oss-20b", "num_sinks = 64"),
        ("qwen3-8b", "norms = "),
        ("gpt-3-175b", "learned positions"),
    ],
)
def test_a_part_that_layers_lack_is_refused_by_name(model, part):
    model = load_model(model, "test") if isinstance(model, str) else model
    with pytest.raises(
        UserError, match=f"{model.name}.*{part}.*can be simulated, but not executed"
    ):
        Transformer(model)


@pytest.mark.parametrize(("new", "context"), [(5, 0), (1, 9), (3, 6)])
@pytest.mark.parametrize("name", [*SPECS, *PLAIN])
def test_pytorch_counts_the_same_flops(loaded, name, new, context):
    """To the last one. Attention runs as plain products here, which are counted as they are done:
    every new token times every entry, those that the mask hides too. (A CPU's fused kernel is not
    counted at all.) So decode without a window equals the spec's pairs, and prefill the whole
    square of which the spec counts what the mask leaves.
    """
    model = loaded(name)
    mixers = [model.model.mixers[mixer] for mixer, _ in model.model.layer_names if mixer != "none"]
    held = [
        Cache(*[inputs(2, mixer.num_kv_heads, context, mixer.head_size)] * 2) for mixer in mixers
    ]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        hidden_TH, _ = model(tokens(2 * new), Chunk(2, new, context), held)
    square = (
        2
        * new
        * (context + new)
        * sum(mixer.context_terms()[0].decode_flops_per_pair for mixer in mixers)
    )
    assert (
        counter.get_total_flops()
        == 2 * new * matmul_flops_per_token(model.model, with_head=False) + square
    )
    with FlopCounterMode(display=False) as head:
        model.logits(hidden_TH)
    per_token = matmul_flops_per_token(model.model, with_head=True) - matmul_flops_per_token(
        model.model, with_head=False
    )
    assert head.get_total_flops() == 2 * new * per_token
