"""What every file of `simulator/runtime/layers/mixers` and `.../ffns` promises. Kinds are
discovered, never listed; each is tried as a model of the fixture ``tiny`` has it.
"""

from functools import partial

import pytest
import torch

from simulator.base.errors import UserError
from simulator.base.plugins import available
from simulator.runtime.layers.kinds import Chunk, build_ffn, ffn_layer, mixer_layer
from simulator.runtime.layers.transformer import check_executable
from simulator.runtime.layers.weights import Part, SeededWeights
from tests.kinds.low_rank import LowRank
from tests.kinds.tied import TiedAttention
from tests.runtime.layers_by_loops import inputs, same

pytestmark = pytest.mark.usefixtures("no_gradients")

MIXERS, FFNS = available("runtime.layers.mixers"), available("runtime.layers.ffns")
HIDDEN, CHUNK = 1024, Chunk(2, 3, 5)


def examples(tiny, family):
    """The first of each kind that a tiny model has."""
    models = [tiny.model(name) for name in tiny.models]
    every = [one for model in models for one in getattr(model, family).values()]
    return {one.kind: one for one in reversed(every)}


def count(layer):
    return sum(parameter.numel() for parameter in layer.parameters())


def drawn(sequence, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sequence))


@pytest.mark.parametrize("family", ["mixers", "ffns"])
def test_layers_are_called_like_the_kinds_that_they_run(family):
    layers = available(f"runtime.layers.{family}")
    assert layers
    assert set(layers) <= set(available(family))


@pytest.mark.parametrize("kind", MIXERS)
def test_a_mixers_parts_hold_what_its_kind_counts_and_add_up(tiny, kind):
    mixer = examples(tiny, "mixers")[kind]
    layer = mixer_layer(mixer, "test")
    draws = [partial(drawn, sequence) for sequence in range(CHUNK.num_sequences)]
    x_TH = inputs(CHUNK.num_tokens, HIDDEN)

    def mixed(part):
        own = layer(mixer, HIDDEN, part)
        own.load(SeededWeights(3), "layer")
        return own(x_TH, CHUNK, layer.draw_cache(mixer, CHUNK.context_tokens, part, draws))

    assert count(layer(mixer, HIDDEN)) == mixer.num_parameters(HIDDEN)
    whole = mixed(Part())
    assert whole.shape == (CHUNK.num_tokens, HIDDEN)
    for size in (2, 4):
        same(sum(mixed(Part(rank, size)) for rank in range(size)), whole)


@pytest.mark.parametrize("kind", MIXERS)
def test_a_cache_of_no_sequences_is_empty(tiny, kind):
    mixer = examples(tiny, "mixers")[kind]
    found = mixer_layer(mixer, "test").draw_cache(mixer, 7, Part(1, 2), [])
    assert found
    assert all(len(tensor) == 0 for tensor in found)


@pytest.mark.parametrize("kind", FFNS)
def test_a_blocks_parts_hold_what_its_kind_counts_and_add_up(tiny, kind):
    ffn = examples(tiny, "ffns")[kind]
    x_TH = inputs(6, HIDDEN)

    def computed(part):
        own = build_ffn(ffn, HIDDEN, None, "test", part)
        own.load(SeededWeights(3), "layer", torch.empty(0))
        return own(x_TH) if ffn.experts is None else own(x_TH)[0]

    assert count(build_ffn(ffn, HIDDEN, None, "test")) == ffn.num_parameters(HIDDEN)
    whole = computed(Part())
    assert whole.shape == x_TH.shape
    same(sum(computed(Part(rank, 2)) for rank in range(2)), whole)


def test_a_kind_without_a_layer_is_refused_with_those_that_have_one(tiny):
    others = {kind: one for kind, one in examples(tiny, "mixers").items() if kind not in MIXERS}
    assert others
    for kind, mixer in others.items():
        said = f"here: mixers of kind '{kind}' can be simulated, but not executed; execution has "
        with pytest.raises(UserError, match=f"^{said}{', '.join(MIXERS)} only$"):
            mixer_layer(mixer, "here")


def test_a_users_own_kinds_can_be_simulated_but_not_executed(tiny):
    mixer = TiedAttention(kind="tests.kinds.tied", num_heads=4, num_groups=2, head_size=8)
    ffn = LowRank(kind="tests.kinds.low_rank", rank=8, intermediate_size=64)
    with pytest.raises(UserError, match=r"'tests\.kinds\.low_rank' can be simulated, but not exec"):
        ffn_layer(ffn, "here")
    model = tiny.model("dense").model_copy(update={"mixers": {"full": mixer}})
    with pytest.raises(
        UserError, match=r"dense \[mixers\.full\]: mixers of kind 'tests\.kinds\.ti"
    ):
        check_executable(model)
    model = tiny.model("dense").model_copy(update={"ffns": {"dense": ffn}})
    with pytest.raises(UserError, match=r"dense \[ffns\.dense\]: ffns of kind 'tests\.kinds\.low_"):
        check_executable(model)
