"""Counts of a training step against PyTorch on a real layer: activations that its backward pass
keeps, and FLOPs forward and backward.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from simulator.config.ffns.dense import DenseFFN
from simulator.config.ffns.moe import MoE
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.config.model import LayerRun, ModelSpec
from simulator.work.flops import matmul_flops_per_token, trained_flops
from simulator.work.trained import count_kept

HIDDEN, HEADS, SIZE, TOKENS, EXPERTS, TOP_K, WIDTH = 32, 4, 8, 24, 6, 2, 40


class FusedSwiglu(torch.autograd.Function):
    """Gate and activation as one kernel, which keeps its input only; as trainings fuse them."""

    @staticmethod
    def forward(ctx, up, weight):
        ctx.save_for_backward(up, weight)
        gate, value = up.chunk(2, dim=-1)
        return F.silu(gate) * value * weight

    @staticmethod
    def backward(ctx, gradient):
        up, weight = ctx.saved_tensors
        with torch.enable_grad():
            own = up.detach().requires_grad_()
            gate, value = own.chunk(2, dim=-1)
            (found,) = torch.autograd.grad(F.silu(gate) * value * weight, own, gradient)
        return found, None


class FusedNorm(torch.autograd.Function):
    """RMSNorm as one kernel, which keeps its input only."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.rms_norm(x, (HIDDEN,), weight)

    @staticmethod
    def backward(ctx, gradient):
        saved = [one.detach().requires_grad_() for one in ctx.saved_tensors]
        with torch.enable_grad():
            made = F.rms_norm(saved[0], (HIDDEN,), saved[1])
        return torch.autograd.grad(made, saved, gradient)


class Layer(torch.nn.Module):
    """A layer of attention and a feed-forward block, dense or of experts, with fused norms."""

    def __init__(self, is_moe):
        super().__init__()
        self.is_moe = is_moe
        self.norms = torch.nn.ParameterList([torch.ones(HIDDEN) for _ in range(2)])
        self.qkv = torch.nn.Linear(HIDDEN, 3 * HEADS * SIZE, bias=False)
        self.out = torch.nn.Linear(HEADS * SIZE, HIDDEN, bias=False)
        count = EXPERTS if is_moe else 1
        self.up, self.down = (
            torch.nn.ParameterList([torch.randn(*shape) * 0.1 for _ in range(count)])
            for shape in ((2 * WIDTH, HIDDEN), (HIDDEN, WIDTH))
        )
        self.ids = torch.arange(TOKENS * TOP_K).reshape(TOKENS, TOP_K) % EXPERTS

    def forward(self, x):
        split = self.qkv(FusedNorm.apply(x, self.norms[0])).view(1, TOKENS, 3, HEADS, SIZE)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(TOKENS, HEADS * SIZE))
        normed = FusedNorm.apply(x, self.norms[1])
        if not self.is_moe:
            return x + self.feed(normed, 0, torch.ones(1))
        for expert in range(EXPERTS):
            token = (self.ids == expert).nonzero()[:, 0]
            weight = torch.full((len(token), 1), 0.5)
            x = x.index_put((token,), self.feed(normed[token], expert, weight), accumulate=True)
        return x

    def feed(self, x, expert, weight):
        return F.linear(FusedSwiglu.apply(F.linear(x, self.up[expert]), weight), self.down[expert])


def describe(is_moe):
    ffn = (
        MoE(kind="moe", num_experts=EXPERTS, top_k=TOP_K, intermediate_size=WIDTH)
        if is_moe
        else DenseFFN(kind="dense", intermediate_size=WIDTH)
    )
    mixer = GroupedQueryAttention(kind="gqa", num_heads=HEADS, num_kv_heads=HEADS, head_size=SIZE)
    return ModelSpec(
        name="test",
        hidden_size=HIDDEN,
        vocab_size=50,
        mixers={"full": mixer},
        ffns={"own": ffn},
        layers=(LayerRun(pattern=(("full", "own"),)),),
    )


def count_saved(layer, run):
    """Numbers in the storages that a forward pass keeps, parameters and what is small aside."""
    kept, own = {}, {one.untyped_storage().data_ptr() for one in layer.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        is_small = tensor.dtype != torch.float32 or tensor.shape[-1] == 1 or tensor.dim() == 1
        is_score = tensor.dim() == 3 and tensor.shape[-1] in (TOKENS, HEADS)
        if storage.data_ptr() not in own and not is_small and not is_score:
            kept[storage.data_ptr()] = tensor, storage.nbytes() // 4
        return tensor

    x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = run(x)
    total = sum(size for _, size in kept.values())
    made.sum().backward()
    return total


@pytest.mark.parametrize("is_moe", [False, True])
def test_kept_activations_are_what_pytorch_saves(is_moe):
    layer = Layer(is_moe)
    kept = count_kept(describe(is_moe), "full", "own", "none")
    expected = kept.per_token * TOKENS + kept.per_pair * TOKENS * TOP_K
    # The layer above has no router, for which the second norm's output would be kept.
    assert count_saved(layer, layer) == expected - is_moe * HIDDEN * TOKENS
    full = count_kept(describe(is_moe), "full", "own", "full")
    again = count_saved(layer, lambda x: checkpoint(layer, x, use_reentrant=False))
    assert again == full.per_token * TOKENS


@pytest.mark.parametrize("is_moe", [False, True])
def test_trained_flops_are_what_pytorch_counts(is_moe):
    layer, model = Layer(is_moe), describe(is_moe)
    x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(
        count for name, count in counted.items() if str(name) in ("aten.mm", "aten.addmm")
    )
    router = 2.0 * HIDDEN * EXPERTS * is_moe  # which the layer above leaves out
    assert products == 3.0 * TOKENS * (matmul_flops_per_token(model, with_head=False) - router)
    pairs = 4.0 * HEADS * SIZE * TOKENS * (TOKENS + 1) / 2
    whole = matmul_flops_per_token(model, with_head=True)
    assert trained_flops(model, TOKENS) == 3.0 * (TOKENS * whole + pairs)
