"""Pruned matrices, blocks and models: the largest weights are left, stored and multiplied."""

import math

import pytest
import torch
from torch.nn import functional

from simulator.base.errors import UserError
from simulator.config.sparsity import Block, TwoFour, Unstructured
from simulator.runtime.layers.feed_forward import FeedForward
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.pruned import PrunedMatrix, choose_kept
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import Part, SeededWeights
from tests.runtime.small_models import SPECS, inputs, tokens

pytestmark = pytest.mark.usefixtures("no_gradients")

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
    mask = choose_kept(matrix, pruning)
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
    mask, pruned = choose_kept(matrix, pruning), PrunedMatrix(pruning)
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
    hidden = functional.linear(
        x_TH, up * choose_kept(up, pruning), noise.tensor("f.up_bias", (rows,))
    )
    hidden = (
        functional.silu(hidden[:, :16]) * hidden[:, 16:] if is_gated else functional.gelu(hidden)
    )
    expected = functional.linear(
        hidden, down * choose_kept(down, pruning), noise.tensor("f.down_bias", (24,))
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


def test_pruned_experts_in_half_precision_are_multiplied_or_refused_by_name():
    matrix, x_TI = inputs(24, 40), inputs(3, 40, seed=2).bfloat16()
    two_four = PrunedMatrix(PRUNINGS["two_four"])
    mask = choose_kept(matrix, two_four.pruning)
    two_four.store(matrix, mask, x_TI)
    torch.testing.assert_close(two_four(x_TI), x_TI @ (matrix * mask).bfloat16().T)
    assert two_four.stored_bytes == (2 + 0.5) * 480
    for name in ("unstructured 0.5", "block 0.5"):
        pruned = PrunedMatrix(PRUNINGS[name])
        with pytest.raises(UserError, match=f"'{pruned.pruning.kind}' needs fp32 on a CPU"):
            pruned.store(matrix, choose_kept(matrix, pruned.pruning), x_TI)


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
        choose_kept(inputs(*shape), PRUNINGS[name])


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
