"""Whole small transformer in one process: the reference that distributed runs must equal, and the
model that is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.base.errors import UserError
from simulator.config.model import ModelSpec
from simulator.config.sparsity import Pruning
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.kinds import (
    Admission,
    Cached,
    Chunk,
    build_ffn,
    ffn_layer,
    mixer_layer,
)
from simulator.runtime.layers.weights import Weights, empty, fill

NORM_EPSILON = 1e-6
"""Constant in the norm's denominator."""


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = empty(hidden_size)

    def load(self, weights: Weights, name: str) -> None:
        """Fill in the weight called ``name``."""
        fill(self.weight, weights.tensor(name, tuple(self.weight.shape)))

    def forward(self, x_TH: Tensor) -> Tensor:
        """Normalised vectors, ``[T, H]``."""
        return functional.rms_norm(x_TH, self.weight.shape, self.weight, NORM_EPSILON)


def check_executable(model: ModelSpec) -> None:
    """Refuse a model that these layers lack a part of.

    Raises:
        UserError: naming the part.
    """
    for name, mixer in model.mixers.items():
        mixer_layer(mixer, f"{model.name} [mixers.{name}]")
    for name, ffn in model.ffns.items():
        ffn_layer(ffn, f"{model.name} [ffns.{name}]")
    for what, has_it in (
        ("learned positions", model.num_positions > 0),
        ("LayerNorm", model.norm_vectors > 1),
        ("parameters outside its blocks", model.num_extra_parameters > 0),
    ):
        if has_it:
            raise UserError(f"{model.name}: a model with {what} can be simulated, but not executed")


class Block(nn.Module):
    """One layer: a mixer and a feed-forward block, each behind a norm and around a residual."""

    def __init__(self, model: ModelSpec, layer: int, pruning: Pruning | None) -> None:
        super().__init__()
        hidden = model.hidden_size
        mixer_name, ffn_name = model.layer_names[layer]
        mixer = None if mixer_name == "none" else model.mixers[mixer_name]
        ffn = None if ffn_name == "none" else model.ffns[ffn_name]
        self.has_experts = model.has_experts(ffn_name)
        self.mixer_norm = None if mixer is None else Norm(hidden)
        self.mixer = None if mixer is None else mixer_layer(mixer, model.name)(mixer, hidden)
        self.ffn_norm = None if ffn is None else Norm(hidden)
        self.ffn = None if ffn is None else build_ffn(ffn, hidden, pruning, model.name)

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Fill in the weights of the layer called ``name``."""
        if self.mixer_norm is not None and self.mixer is not None:
            self.mixer_norm.load(weights, f"{name}.mixer_norm")
            self.mixer.load(weights, f"{name}.mixer")
        if self.ffn_norm is not None and self.ffn is not None:
            self.ffn_norm.load(weights, f"{name}.ffn_norm")
            self.ffn.load(weights, f"{name}.ffn", like)


class Transformer(nn.Module):
    """Model with every layer of a :class:`~simulator.config.model.ModelSpec`."""

    def __init__(self, model: ModelSpec, pruning: Pruning | None = None) -> None:
        super().__init__()
        check_executable(model)
        self.model = model
        self.embedding = empty(model.vocab_size, model.hidden_size)
        self.blocks = nn.ModuleList(
            Block(model, layer, pruning) for layer in range(model.num_layers)
        )
        self.norm = Norm(model.hidden_size)
        self.head = None if model.ties_embeddings else empty(model.vocab_size, model.hidden_size)

    def load(self, weights: Weights) -> None:
        """Fill in every weight."""
        fill(self.embedding, weights.tensor("embedding", tuple(self.embedding.shape)))
        for layer, block in enumerate(self._blocks()):
            block.load(weights, f"layers.{layer}", self.embedding)
        self.norm.load(weights, "norm")
        if self.head is not None:
            fill(self.head, weights.tensor("head", tuple(self.head.shape)))

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            if isinstance(block, Block):
                yield block

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight under its name in :class:`~simulator.runtime.layers.weights.Weights`;
        each expert on its own.
        """
        owners = dict(self.named_modules())
        for path, parameter in self.named_parameters():
            owner_path, _, leaf = path.rpartition(".")
            owner = owners[owner_path]
            name = owner_path.replace("blocks.", "layers.").replace(".shared.block", ".shared")
            if isinstance(owner, Experts):
                for expert, values in enumerate(parameter):
                    yield f"{name}.{expert}.{leaf}", values
            elif isinstance(owner, Norm):
                yield name, parameter
            else:
                yield f"{name}.{leaf}" if name else leaf, parameter

    def forward(
        self,
        token_ids_T: Tensor,
        chunk: Chunk,
        caches: list[Cached] | None = None,
        ids_LTJ: Tensor | None = None,
        admissions: Sequence[Admission | None] = (),
    ) -> tuple[Tensor, Tensor]:
        """Compute hidden vectors of every new token behind the last norm.

        Args:
            token_ids_T: sequence after sequence.
            caches: one for each layer with a mixer, in order; needed where the chunk has context.
            ids_LTJ: experts to use instead of the routers' choice, by MoE layer: the chosen ones,
                and perhaps the next ones.
            admissions: of tokens to the experts of each MoE layer; by default all are admitted.

        Returns:
            ``[T, H]``, and the used ``topk_ids_LTK`` (``[0, T, 0]`` for a dense model).
        """
        x_TH = self.embedding[token_ids_T]
        used: list[Tensor] = []
        mixers = 0
        for block in self._blocks():
            if block.mixer is not None and block.mixer_norm is not None:
                x_TH = x_TH + block.mixer(
                    block.mixer_norm(x_TH), chunk, None if caches is None else caches[mixers]
                )
                mixers += 1
            if block.ffn_norm is None:
                continue
            normed = block.ffn_norm(x_TH)
            if block.ffn is not None and block.has_experts:
                result, ids_TK = block.ffn(
                    normed,
                    None if ids_LTJ is None else ids_LTJ[len(used)],
                    admissions[len(used)] if admissions else None,
                )
                used.append(ids_TK)
                x_TH = x_TH + result
            elif block.ffn is not None:
                x_TH = x_TH + block.ffn(normed)
        ids_LTK = torch.stack(used) if used else torch.empty(0, len(x_TH), 0, dtype=torch.int64)
        return self.norm(x_TH), ids_LTK

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Logits ``[T, vocabulary]`` from hidden vectors behind the last norm."""
        return functional.linear(hidden_TH, self.embedding if self.head is None else self.head)
