"""Operations of a training pass: one micro-batch through a chunk of layers, forward, or backward
for the gradients of inputs, of weights, or of both.

A backward matrix product is two products of the forward one's size, one for the gradient of its
input and one for that of its weights. The backward pass of attention makes its scores again: five
products for the forward pass's two (Dao, FlashAttention-2, arXiv:2307.08691, section 3.1.2 and
4.1). Tokens' gradients travel to experts and back as tokens did, over the same links.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.cost.comm import CommModel
from simulator.deployment.placement import Placement
from simulator.policies.pipelining import PassKind
from simulator.step.expert_prices import ExpertStep
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy, Operation, Together

ATTENTION_RATIO = 2.5
"""Ratio of the seconds of attention's backward pass to those of its forward pass."""


@dataclass(frozen=True)
class MicroBatch:
    """Micro-batch of a block of ranks: as many sequences of equal length in each context-parallel
    group.
    """

    sequences: int
    sequence_tokens: int
    cp: int = 1
    """Context-parallel groups that share a sequence."""

    @property
    def rank_tokens(self) -> int:
        """Tokens in each group."""
        return self.sequences * self.sequence_tokens // self.cp

    def split(self, num_groups: int) -> Batch:
        """Split the micro-batch over data- and context-parallel groups. A group computes a part
        from the front of a sequence and one from its back, so that all attend to equally much
        (Megatron-LM's context parallelism).
        """
        part = self.sequence_tokens // (2 * self.cp)
        new, context = [], []
        for group in range(num_groups):
            front = group % self.cp
            starts = [front * part, (2 * self.cp - 1 - front) * part] if self.cp > 1 else [0]
            length = part if self.cp > 1 else self.sequence_tokens
            new.append(np.full(len(starts) * self.sequences, length, dtype=np.int64))
            context.append(np.tile(np.array(starts, dtype=np.int64), self.sequences))
        never = tuple(np.zeros(len(one), dtype=np.bool_) for one in new)
        logits = np.full(num_groups, self.rank_tokens, dtype=np.int64)
        return Batch(tuple(new), tuple(context), never, logits)


class TrainingPrices:
    """Prices of the passes of one micro-batch on a block of ranks."""

    def __init__(
        self,
        placement: Placement,
        micro_batch: MicroBatch,
        ring: CommModel | None,
        backward_ratio: float,
        *,
        redoes: bool,
    ) -> None:
        """Prepare prices; each is computed on first use.

        Args:
            ring: wires of the ranks that share a sequence; ``None`` without context parallelism.
            backward_ratio: seconds of a matrix product's backward pass over its forward ones.
            redoes: whether a backward pass begins with another forward pass.
        """
        self.placement = placement
        self._ring = ring
        self.micro_batch = micro_batch
        self._ratio = backward_ratio
        self._redoes = redoes
        rows = np.array([0, micro_batch.rank_tokens], dtype=np.int64)
        self._prices = Prices(placement, micro_batch.rank_tokens, rows)

    @cached_property
    def batch(self) -> Batch:
        """Batch of all groups of the block."""
        return self.micro_batch.split(self.placement.layout.attention_dp)

    @cached_property
    def expert_steps(self) -> list[ExpertStep]:
        """Priced experts of every MoE layer."""
        if self.placement.experts is None:
            return []
        return self._prices.price_batch(self.batch, 0).parts[0].steps

    @property
    def pairs_R(self) -> NDArray[np.float64]:
        """Token-expert pairs of each rank in all layers, ``[R]``."""
        total_R = np.zeros(self.placement.layout.num_ranks)
        for step in self.expert_steps:
            total_R = total_R + step.pairs_R
        return total_R

    @cached_property
    def _context_s(self) -> dict[str, NDArray[np.float64]]:
        """Seconds of one layer's attention over the context, by mixer, on each rank."""
        tp = self.placement.layout.tp
        return {
            name: np.repeat(self._prices.mixer_context_s(name, self.batch), tp)
            for name in self.placement.model.mixers
        }

    def list_operations(self, layers: range, kind: PassKind) -> list[Operation]:
        """List the operations of a pass through layers, in order. A pass with the last layer makes
        the logits, or their gradients.
        """
        if kind == "forward":
            return [*self._layers(layers, 1.0, 1.0), *self._head(layers, 1.0)]
        if kind == "weight":
            products = self._ratio / 2.0
            weights = [*self._layers(layers, products, 0.0), *self._head(layers, products)]
            return [one for one in weights if isinstance(one, Busy)]
        products = self._ratio / (2.0 if kind == "input" else 1.0)
        backward = [*self._layers(layers, products, ATTENTION_RATIO), *self._head(layers, products)]
        redone = list(self._layers(layers, 1.0, 1.0)) if self._redoes else []
        return [*redone, *reversed(backward)]

    def _layers(self, layers: range, products: float, attention: float) -> Iterator[Operation]:
        """Yield the operations of layers.

        Args:
            products: factor on the seconds of matrix products.
            attention: factor on those of attention over the context.
        """
        model, num_ranks = self.placement.model, self.placement.layout.num_ranks
        for layer in layers:
            mixer, ffn = model.layer_names[layer]
            after_mixer, after_ffn = self._prices.all_reduces(ffn, mixer)
            if mixer != "none":
                seconds_R = np.full(num_ranks, products * self._prices.mixer_s[mixer][1])
                seconds_R = seconds_R + attention * self._context_s[mixer]
                yield Busy("attention", layer, self.placement.slow_down(seconds_R))
                yield from self._pass_on(layer, mixer, attention)
            if after_mixer:
                yield self._sum(layer)
            if ffn != "none":
                seconds_R = np.full(num_ranks, products * self._prices.ffn_s[ffn][1])
                yield Busy("dense", layer, self.placement.slow_down(seconds_R))
            if model.has_experts(ffn):
                yield from self._experts(layer, products)
            if after_ffn:
                yield self._sum(layer)

    def _experts(self, layer: int, products: float) -> Iterator[Operation]:
        step = self.expert_steps[self.placement.model.moe_layers.index(layer)]
        busy = Busy("experts", layer, products * step.experts_R)
        if not self.placement.layout.travels:
            yield busy
            return
        everyone = (self._prices.all_ranks,)
        if step.pack_R is not None:
            yield Busy("experts", layer, step.pack_R)
        yield Together("dispatch", layer, everyone, (step.dispatch,))
        yield busy
        yield Together("combine", layer, everyone, (step.combine,))
        if step.unpack_R is not None:
            yield Busy("experts", layer, step.unpack_R)

    def _sum(self, layer: int) -> Operation:
        """Make the operation of one layer's reduce-scatter and all-gather over tensor-parallel
        ranks (sequence parallelism), which is an all-reduce.
        """
        groups = self._prices.tensor_groups
        sums = tuple(
            self._prices.all_reduce(d, self.micro_batch.rank_tokens) for d in range(len(groups))
        )
        return Together("collective", layer, groups, sums)

    def _pass_on(self, layer: int, mixer: str, attention: float) -> Iterator[Operation]:
        """Yield what keys and values take on their way round the context-parallel ring beyond the
        attention that they travel beneath. Their gradients go round once more.
        """
        if self._ring is None or not attention:
            return
        rounds = 2.0 if attention > 1.0 else 1.0
        hidden_s = attention * float(self._context_s[mixer].max())
        exposed_s = rounds * self._gather_s(self._ring, mixer) - hidden_s
        if exposed_s > 0.0:
            yield Busy("collective", layer, np.full(self.placement.layout.num_ranks, exposed_s))

    def _gather_s(self, ring: CommModel, mixer: str) -> float:
        """Seconds in which the keys and values of one layer go round the ring: an all-gather, half
        of an all-reduce.
        """
        cp, tp = self.micro_batch.cp, self.placement.layout.tp
        element = BYTES_PER_ELEMENT[self.placement.precision.activations]
        per_token = sum(
            term.cached_elements_per_entry / min(tp, term.num_shards)
            for term in self.placement.model.mixers[mixer].context_terms()
        )
        size = np.array([per_token * element * self.micro_batch.rank_tokens * cp])
        return float(ring.all_reduces_s(size, tuple(range(0, tp * cp, tp)))[0]) / 2.0

    def _head(self, layers: range, products: float) -> Iterator[Operation]:
        if layers.stop == self.placement.model.num_layers:
            seconds = products * float(self._prices.head_s[1])
            yield Busy("dense", -1, np.full(self.placement.layout.num_ranks, seconds))
