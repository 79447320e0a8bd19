"""What the model's blocks hold and multiply is what the spec counts: parameters, FLOPs, pruned
weights; and where weights come from.
"""

# ruff: noqa: E402 (what follows needs torch, and is skipped without)

import math

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simulator.base.errors import UserError
from simulator.config.model import ModelSpec, load_model
from simulator.config.pruning import Block, TwoFour, Unstructured
from simulator.runtime.layers.attention import Cache, Chunk
from simulator.runtime.layers.ffn import FeedForward
from simulator.runtime.layers.part import Part
from simulator.runtime.layers.pruned import PrunedMatrix, kept
from simulator.runtime.layers.transformer import Transformer, check_executable
from simulator.runtime.layers.weights import (
    SafetensorsWeights,
    SeededWeights,
    save_weights,
    weights_from,
)
from simulator.work.flops import matmul_flops_per_token

GQA = {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_size": 6}
DENSE = {"kind": "dense", "intermediate_size": 20}
MOE = {"kind": "moe", "num_experts": 8, "top_k": 3, "intermediate_size": 10}
SHARED = {"num_shared_experts": 2, "shared_intermediate_size": 14}


def spec(ffn, mixer=GQA, pattern=(("m", "f"), ("m", "f")), **keys):
    table = {
        "name": "small",
        "hidden_size": 24,
        "vocab_size": 50,
        "mixers": {"m": mixer},
        "ffns": {"f": ffn},
        **keys,
    }
    return ModelSpec.model_validate(
        {**table, "layers": [{"pattern": [list(layer) for layer in pattern]}]}
    )


SPECS = {
    "dense": spec(DENSE),
    "dense, not gated": spec({**DENSE, "is_gated": False}),
    "dense, every bias": spec(
        {**DENSE, "has_bias": True}, {**GQA, "has_qkv_bias": True, "has_output_bias": True}
    ),
    "dense, not gated, bias": spec(
        {**DENSE, "is_gated": False, "has_bias": True}, {**GQA, "has_qkv_bias": True}
    ),
    "tied embeddings": spec(DENSE, ties_embeddings=True),
    "window": spec(DENSE, {**GQA, "num_kv_heads": 4, "window": 3}),
    "experts": spec(MOE),
    "experts, not gated": spec({**MOE, "is_gated": False}),
    "experts, biases": spec({**MOE, "has_expert_bias": True, "has_router_bias": True}),
    "experts, not gated, biases": spec({**MOE, "is_gated": False, "has_expert_bias": True}),
    "shared experts": spec({**MOE, **SHARED}),
    "shared experts behind a gate": spec(
        {**MOE, **SHARED, "has_shared_gate": True, "has_router_bias": True}
    ),
    "groups": spec(
        {**MOE, "num_groups": 4, "num_limited_groups": 2, "scoring": "sigmoid"},
        ties_embeddings=True,
    ),
    "layers without a half": spec(
        {**MOE, **SHARED}, pattern=[("m", "none"), ("none", "f"), ("m", "f"), ("none", "none")]
    ),
    "no mixer at all": spec(DENSE, pattern=[("none", "f")]),
    "no ffn at all": spec(DENSE, pattern=[("m", "none")]),
}
PLAIN = ("llama-2-70b", "llama-3.1-8b", "mixtral-8x7b", "qwen1.5-moe-a2.7b")
OTHERS = (
    "llama-2-7b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "mixtral-8x22b",
    "llama-4-maverick",
    "gpt-4-rumoured",
    "qwen3-30b-a3b",
)


def shrunk(name):
    """A shipped model with its structure and small sizes: norms, sinks and positions that layers
    cannot run are left out.
    """
    model = load_model(name, "test")
    table = model.model_dump()
    for mixer in table["mixers"].values():
        ratio = mixer["num_heads"] // mixer["num_kv_heads"]
        mixer.update(
            num_heads=2 * ratio,
            num_kv_heads=2,
            head_size=4,
            norms=0,
            num_sinks=0,
            has_output_gate=False,
        )
        mixer["window"] = mixer["window"] and 4
    for ffn in table["ffns"].values():
        ffn["intermediate_size"] = 12
        if ffn["kind"] == "moe":
            ffn["num_experts"] = max(ffn["top_k"], ffn["num_experts"] // 8)
            ffn["shared_intermediate_size"] = 6 * ffn["num_shared_experts"]
    for run in table["layers"]:
        run["repeat"] = min(run["repeat"], 2)
    return ModelSpec.model_validate(
        {**table, "hidden_size": 16, "vocab_size": 40, "num_positions": 0, "norm_vectors": 1}
    )


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def loaded():
    """``loaded("dense")`` or ``loaded("mixtral-8x7b")``: a model with its seed's weights."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = Transformer(SPECS[name] if name in SPECS else shrunk(name))
            known[name].load(SeededWeights(1))
        return known[name]

    return get


def tokens(num, vocab=40):
    return torch.arange(num) * 7 % vocab


def inputs(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
        (spec(DENSE, num_positions=9), "learned positions"),
        (spec(DENSE, num_extra_parameters=5), "parameters outside its blocks"),
    ],
)
def test_a_part_that_layers_lack_is_refused_by_name(model, part):
    with pytest.raises(UserError, match=f"small.*{part}.*can be simulated, but not executed"):
        Transformer(model)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("deepseek-v3", "mixers of kind 'mla'"),
        ("gpt-oss-20b", "num_sinks = 64"),
        ("qwen3-8b", "norms = "),
        ("qwen3.5-35b-a3b", "mixers of kind 'gated_delta_net'"),
        ("gpt-3-175b", "learned positions"),
        ("nemotron-3-nano-30b-a3b", "mixers of kind 'mamba2'"),
    ],
)
def test_a_shipped_model_with_such_a_part_is_refused_by_name(name, part):
    with pytest.raises(UserError, match=f"{name}.*{part}.*can be simulated, but not executed"):
        Transformer(load_model(name, "test"))


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
    """As many experts as DeepSeek-V3 has."""
    weights = SeededWeights(0)
    names = [
        f"layers.{layer}.ffn.experts.{e}.{leaf}"
        for layer in range(3, 61)
        for e in range(256)
        for leaf in ("up", "down")
    ]
    assert len({tuple(weights.tensor(name, (1, 3))[0].tolist()) for name in names}) == len(names)


PRUNINGS = {
    **{
        f"unstructured {share}": Unstructured(kind="unstructured", sparsity=share)
        for share in (0.0, 0.5, 0.8, 0.95, 0.9999)
    },
    "two_four": TwoFour(kind="two_four"),
    **{
        f"block {share}": Block(kind="block", sparsity=share, block_size=4)
        for share in (0.0, 0.5, 0.8, 0.95, 0.9999)
    },
}


@pytest.mark.parametrize("pruning", PRUNINGS.values(), ids=PRUNINGS)
def test_the_largest_weights_are_left_and_as_many_as_the_spec_counts(pruning):
    matrix = inputs(24, 40)
    mask = kept(matrix, pruning)
    assert int(mask.sum()) == pruning.num_stored(24, 40)
    if isinstance(pruning, Unstructured):
        sizes, left = matrix.abs().flatten()[None], mask.flatten()[None]
    elif isinstance(pruning, TwoFour):
        sizes, left = matrix.abs().view(-1, 4), mask.view(-1, 4)
        assert left.sum(dim=1).unique().tolist() == [2]
    else:
        tiles = [
            (matrix[r : r + 4, c : c + 4], mask[r : r + 4, c : c + 4])
            for r in range(0, 24, 4)
            for c in range(0, 40, 4)
        ]
        assert all(tile.all() or not tile.any() for _, tile in tiles)
        sizes = torch.tensor([[float(tile.norm()) for tile, _ in tiles]])
        left = torch.tensor([[bool(tile.any()) for _, tile in tiles]])
    smallest_left = sizes.masked_fill(~left, math.inf).amin(dim=1)
    assert bool((smallest_left >= sizes.masked_fill(left, 0).amax(dim=1)).all())


def index_share(pruning):
    """A byte holds the places of a pair on a CPU: twice the spec's two bits a weight, which is the
    format of CUDA.
    """
    return 2 if isinstance(pruning, TwoFour) else 1


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize("zeros", [False, True], ids=["", "half zeros"])
@pytest.mark.parametrize("pruning", PRUNINGS.values(), ids=PRUNINGS)
def test_a_pruned_matrix_stores_what_the_spec_counts_and_multiplies_like_the_masked_one(
    pruning, zeros, num_tokens
):
    matrix, x_TI = inputs(24, 40), inputs(num_tokens, 40, seed=2)
    if zeros:
        matrix[:12] = 0
    mask, pruned = kept(matrix, pruning), PrunedMatrix(pruning)
    pruned.store(matrix, mask, x_TI)
    assert pruned.num_stored == pruning.num_stored(24, 40)
    assert pruned.stored_bytes == 4 * pruning.num_stored(24, 40) + index_share(
        pruning
    ) * pruning.index_bytes(24, 40)
    torch.testing.assert_close(pruned(x_TI), x_TI @ (matrix * mask).T)


class Noise(dict):
    """Weights of any name, biases too, none of them zero."""

    def tensor(self, name, shape):
        if name not in self:
            self[name] = inputs(*shape, seed=len(self)) / shape[-1] ** 0.5
        return self[name]


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize("pruning", PRUNINGS.values(), ids=PRUNINGS)
def test_the_parts_of_a_pruned_block_add_up_to_the_masked_one(pruning, num_tokens, is_gated):
    noise, x_TH = Noise(), inputs(num_tokens, 24)
    rows = 32 if is_gated else 16
    up, down = noise.tensor("f.up", (rows, 24)), noise.tensor("f.down", (24, 16))
    hidden = functional.linear(x_TH, up * kept(up, pruning), noise.tensor("f.up_bias", (rows,)))
    hidden = (
        functional.silu(hidden[:, :16]) * hidden[:, 16:] if is_gated else functional.gelu(hidden)
    )
    expected = functional.linear(
        hidden, down * kept(down, pruning), noise.tensor("f.down_bias", (24,))
    )
    # Whole, even, and where weights have no blocks uneven parts, with parts that have no features
    # at all.
    for size in (1, 2, 4, 3, 20) if isinstance(pruning, Unstructured) else (1, 2, 4):
        blocks = [
            FeedForward(
                24, 16, is_gated=is_gated, has_bias=True, part=Part(rank, size), pruning=pruning
            )
            for rank in range(size)
        ]
        for block in blocks:
            block.load(noise, "f", x_TH)
        torch.testing.assert_close(sum(block(x_TH) for block in blocks), expected)
        for matrix, shape in (("up", (rows, 24)), ("down", (24, 16))):
            parts = [getattr(block, matrix) for block in blocks]
            assert sum(part.num_stored for part in parts) == pruning.num_stored(*shape)
            if size == 1:
                share = index_share(pruning) * pruning.index_bytes(*shape)
                assert parts[0].stored_bytes == 4 * pruning.num_stored(*shape) + share


def test_pruned_experts_in_half_precision_are_multiplied_or_refused_by_name():
    matrix, x_TI = inputs(24, 40), inputs(3, 40, seed=2).bfloat16()
    two_four = PrunedMatrix(PRUNINGS["two_four"])
    mask = kept(matrix, two_four.pruning)
    two_four.store(matrix, mask, x_TI)
    torch.testing.assert_close(two_four(x_TI), x_TI @ (matrix * mask).bfloat16().T)
    assert two_four.stored_bytes == (2 + 0.5) * 480
    for name in ("unstructured 0.5", "block 0.5"):
        pruned = PrunedMatrix(PRUNINGS[name])
        with pytest.raises(UserError, match=f"'{pruned.pruning.kind}' needs fp32 on a CPU"):
            pruned.store(matrix, kept(matrix, pruned.pruning), x_TI)


@pytest.mark.parametrize(
    ("name", "width", "ranks"),
    [("block 0.5", 16, 8), ("block 0.5", 24, 4), ("two_four", 16, 3), ("two_four", 8, 4)],
)
def test_a_split_through_blocks_is_refused(name, width, ranks):
    with pytest.raises(
        UserError, match=r"cannot be split at features \d+ and \d+: not multiples of 4"
    ):
        FeedForward(
            24, width, is_gated=True, has_bias=False, part=Part(1, ranks), pruning=PRUNINGS[name]
        )


@pytest.mark.parametrize(
    ("name", "shape"), [("two_four", (8, 6)), ("block 0.5", (8, 6)), ("block 0.5", (6, 8))]
)
def test_a_matrix_that_is_not_made_of_whole_blocks_is_refused(name, shape):
    with pytest.raises(UserError, match=r"needs matrices of whole . x 4 blocks, got \[\d, \d\]"):
        kept(inputs(*shape), PRUNINGS[name])


def test_a_pruned_model_prunes_its_dense_blocks_and_nothing_else():
    pruning = PRUNINGS["unstructured 0.8"]
    model = Transformer(SPECS["dense"], pruning)
    model.load(SeededWeights(1))
    whole = SPECS["dense"].num_parameters
    per_layer = [linear.num_parameters for linear in SPECS["dense"].ffns["f"].linears(24)]
    assert sum(parameter.numel() for parameter in model.parameters()) == whole - 2 * sum(per_layer)
    stored = [(block.ffn.up.num_stored, block.ffn.down.num_stored) for block in model.blocks]
    assert stored == [tuple(count - round(0.8 * count) for count in per_layer)] * 2
    assert model(tokens(6), Chunk(2, 3, 0))[0].isfinite().all()
