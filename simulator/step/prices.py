"""Prices of the steps of a placed replica: each block's work, priced by the cost models.

All fidelities take their seconds from here. Matrix products depend on the number of tokens only, so
they are priced once for every possible number; attention over the context is a closed form in a few
sums; routed experts and their exchanges depend on the experts that tokens chose, and are priced
from ``topk_ids``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.ffns import FFN
from simulator.config.linear import Linear
from simulator.config.mixers import Mixer
from simulator.config.sparsity import Pruning, choose_dense
from simulator.cost.comm import Exchange
from simulator.cost.compute import Phase, Rates
from simulator.cost.engine_time import sequences_s
from simulator.cost.kernels.attention import kernels_s
from simulator.cost.stages import VECTORS
from simulator.deployment.placement import Placement
from simulator.step.expert_prices import ExpertPrices, ExpertStep, OffloadPrices, find_imbalance
from simulator.step.overlap import halves
from simulator.step.program import Batch, PricedBatch, PricedPart
from simulator.step.request_choices import RequestChoices
from simulator.work.context import ContextKernel, context_kernels, sums_by_rank
from simulator.work.layout import shard, stage_layers
from simulator.work.memory import expert_bytes_per_layer, linear_bytes, weight_bytes

PHASES: tuple[Phase, ...] = ("prefill", "decode")
"""Phases that attention kernels tell apart, in the order of arrays with a phase axis."""


class DraftPass(NamedTuple):
    """Passes of a drafting module that take equally long."""

    prices: Prices
    batch: Batch
    number: int


class Prices:
    """Prices of a placed replica's steps, for batches of up to ``max_tokens`` tokens on a
    data-parallel rank.
    """

    def __init__(
        self,
        placement: Placement,
        max_tokens: int,
        rows: NDArray[np.int64] | None = None,
        choices: RequestChoices | None = None,
    ) -> None:
        """Prepare prices; each is computed on first use.

        Args:
            rows: numbers of tokens that blocks are priced for, which their arrays are indexed by;
                by default every number up to ``max_tokens``.
            choices: recorded tokens that requests take their experts from; by default batches take
                theirs from the pool.
        """
        self.placement = placement
        self.max_tokens = max_tokens
        self.choices = choices
        self._rows = np.arange(max_tokens + 1, dtype=np.int64) if rows is None else rows
        self.context_kernels: tuple[ContextKernel, ...] = context_kernels(
            placement.model, placement.layout, placement.precision
        )
        self.rates: dict[tuple[ContextKernel, Phase], Rates] = {
            (term, phase): placement.compute.context_rates(term, phase)
            for term in self.context_kernels
            for phase in PHASES
        }

    @property
    def decode_rows(self) -> int:
        """Most new tokens of a sequence that a step's decode attention kernels take: one, and the
        draft tokens. Engines sort sequences by it (``reorder_batch_threshold`` in vLLM).
        """
        return 1 + self.placement.drafts.num_tokens

    @cached_property
    def mixer_s(self) -> dict[str, NDArray[np.float64]]:
        """Seconds of one layer's mixer without attention over the context, by mixer and number of
        tokens.
        """
        hidden, tp = self.placement.model.hidden_size, self.placement.layout.tp
        found = {}
        for name, mixer in self.placement.model.mixers.items():
            linears = mixer.linears(hidden)
            width = shard(linears[0], tp)[1] if linears else 0
            found[name] = self._linears_s(linears) + self.placement.compute.mixer_s(
                self._rows, hidden, width
            )
        return found

    @cached_property
    def ffn_s(self) -> dict[str, NDArray[np.float64]]:
        """Seconds of one layer's feed-forward block without routed experts, by block and number of
        tokens.
        """
        return {name: self._ffn_s(ffn) for name, ffn in self.placement.model.ffns.items()}

    def _ffn_s(self, ffn: FFN) -> NDArray[np.float64]:
        placement, hidden, tp = (
            self.placement,
            self.placement.model.hidden_size,
            self.placement.layout.tp,
        )
        linears, width, experts = ffn.linears(hidden), ffn.inner_width, ffn.experts
        around_s, router_s = np.zeros(len(self._rows)), np.zeros(len(self._rows))
        if width:
            around_s = placement.compute.ffn_s(self._rows, hidden, -(-width // tp))
        if experts is not None:
            router_s = placement.compute.router_s(self._rows, hidden, experts.num_experts)
        pruning = choose_dense(placement.pruning) if ffn.is_prunable else None
        return self._linears_s(linears, pruning=pruning) + router_s + around_s

    @cached_property
    def shared_s(self) -> dict[str, NDArray[np.float64]]:
        """Seconds of one layer's shared experts, which are a part of :attr:`ffn_s`, by block and
        number of tokens; of blocks with routed experts.
        """
        placement, found = self.placement, {}
        hidden, tp = placement.model.hidden_size, placement.layout.tp
        for name, ffn in placement.model.ffns.items():
            if ffn.experts is not None:
                width = -(-ffn.inner_width // tp)
                around_s = placement.compute.ffn_s(self._rows, hidden, width) if width else 0.0
                found[name] = self._linears_s(ffn.experts.shared_linears(hidden)) + around_s
        return found

    @cached_property
    def head_s(self) -> NDArray[np.float64]:
        """Seconds of the output matrix by number of sequences that get a token."""
        model = self.placement.model
        return self._linears_s(
            (Linear("head", model.hidden_size, model.vocab_size, "column"),), dtype="bf16"
        )

    def _linears_s(
        self, linears: tuple[Linear, ...], dtype: str | None = None, pruning: Pruning | None = None
    ) -> NDArray[np.float64]:
        pruned = {} if pruning is None else {"pruning": pruning}
        total = np.zeros(len(self._rows))
        for linear in linears:
            stored = dtype or (
                "bf16" if linear.name == "router" else self.placement.precision.weights
            )
            in_features, out_features, copies = shard(linear, self.placement.layout.tp)
            total += self.placement.compute.gemm_s(
                self._rows, in_features, out_features, stored, copies, **pruned
            )
        return total

    def mixer_context_s(self, mixer: str, batch: Batch) -> NDArray[np.float64]:
        """Seconds of the context kernels of one layer with ``mixer``, ``[D]`` by data-parallel
        rank.
        """
        total_D = np.zeros(len(batch.tokens_d))
        for term in self.context_kernels:
            if term.mixer == mixer:
                total_D = total_D + self._context_kernel_s(term, batch)
        return total_D

    def _context_kernel_s(self, term: ContextKernel, batch: Batch) -> NDArray[np.float64]:
        total_D = np.zeros(len(batch.tokens_d))
        for phase in PHASES:
            sums_D6 = self.sum_contexts(term, phase, batch)
            rates = np.tile(self.rates[term, phase], (len(sums_D6), 1))
            total_D += np.where(sums_D6[:, 4] > 0, kernels_s(rates, sums_D6), 0.0)
        return total_D

    def view(self, term: ContextKernel, phase: Phase) -> tuple[int, int, float]:
        """Parameters of a kernel's attention context: entries of its window, tokens of an entry,
        and rows that are computed together.
        """
        rates = self.rates[term, phase]
        return term.window + int(rates.window_block), term.compression, rates.tile_rows

    def sum_contexts(self, term: ContextKernel, phase: Phase, batch: Batch) -> NDArray[np.float64]:
        """Sum the attention contexts, ``[D, 6]``, of each rank's sequences that the kernel of
        ``phase`` computes.
        """
        new_N, context_N, rank_N = batch.sequences
        chosen = (new_N <= self.decode_rows) == (phase == "decode")
        return sums_by_rank(
            context_N[chosen],
            new_N[chosen],
            rank_N[chosen],
            len(batch.tokens_d),
            *self.view(term, phase),
        )

    def all_reduces(self, ffn_name: str, mixer_name: str) -> tuple[int, int]:
        """Count all-reduces over each tensor-parallel group after the mixer and after the
        feed-forward block of a layer.

        Where tokens travel to experts, the reduce-scatter before and the all-gather after are one
        all-reduce together.
        """
        layout = self.placement.layout
        if layout.tp == 1:
            return 0, 0
        is_travelling = layout.travels and self.placement.model.has_experts(ffn_name)
        return int(mixer_name != "none"), int(ffn_name != "none" and not is_travelling)

    @cached_property
    def num_all_reduces(self) -> int:
        """All-reduces of one step."""
        return sum(
            sum(self.all_reduces(ffn, mixer)) for mixer, ffn in self.placement.model.layer_names
        )

    @cached_property
    def all_ranks(self) -> tuple[int, ...]:
        """Ranks of a replica, or of a stage of its pipeline."""
        return tuple(range(self.placement.layout.num_ranks))

    @cached_property
    def tensor_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks of every tensor-parallel group, in order of data-parallel rank."""
        tp = self.placement.layout.tp
        return tuple(
            tuple(range(d * tp, (d + 1) * tp)) for d in range(self.placement.layout.attention_dp)
        )

    def all_reduce(self, d: int, num_tokens: int) -> Exchange:
        """Price the all-reduce of ``num_tokens`` tokens' hidden vectors over tensor-parallel group
        ``d``.
        """
        value_bytes = BYTES_PER_ELEMENT[self.placement.precision.activations]
        return self.placement.comm.all_reduce(
            num_tokens * self.placement.model.hidden_size * value_bytes, self.tensor_groups[d]
        )

    def all_reduces_s(self, num_tokens: NDArray[np.int64], d: int = 0) -> NDArray[np.float64]:
        """Seconds of :meth:`all_reduce` over group ``d`` for each number of tokens, with links that
        carry nothing else.
        """
        value_bytes = BYTES_PER_ELEMENT[self.placement.precision.activations]
        num_bytes = np.asarray(
            num_tokens * (self.placement.model.hidden_size * value_bytes), dtype=np.float64
        )
        return np.asarray(
            self.placement.comm.all_reduces_s(num_bytes, self.tensor_groups[d]), dtype=np.float64
        )

    def price_ranks(self, find: Callable[[Prices], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Seconds in which each rank computes, ``[R]``.

        Args:
            find: seconds of each data-parallel rank, ``[D]``, where all GPUs are of one kind, by
                the prices of that kind.
        """
        placement, tp = self.placement, self.placement.layout.tp
        return placement.combine_kinds(lambda kind: np.repeat(find(self.kinds[kind]), tp))

    @cached_property
    def kinds(self) -> tuple[Prices, ...]:
        """Prices on each kind of GPU in the cluster: these, of its own kind, and those of the same
        batches where all GPUs are of another, in the order of ``placement.others``.
        """
        others = (
            Prices(replace(self.placement, compute=compute), self.max_tokens, self._rows)
            for compute in self.placement.others.values()
        )
        return (self, *others)

    @cached_property
    def module(self) -> Prices | None:
        """Prices of the module that drafts; ``None`` where none does."""
        placed = self.placement.module
        return None if placed is None else Prices(placed, self.max_tokens, self._rows, self.choices)

    def list_passes(self, batch: Batch) -> list[DraftPass]:
        """List the passes of the module that draft for the sequences of a batch: the first is over
        its tokens, each further one over one token of each sequence behind them.
        """
        if self.module is None:
            return []
        counts = np.array([len(new) for new in batch.new_tokens], dtype=np.int64)
        ends = tuple(
            context + new
            for context, new in zip(batch.context_tokens, batch.new_tokens, strict=True)
        )
        ones = tuple(np.ones(count, dtype=np.int64) for count in counts)
        found = [DraftPass(self.module, replace(batch, num_logits=counts), 1)]
        further = replace(batch, new_tokens=ones, context_tokens=ends, num_logits=counts)
        more = self.placement.drafts.num_tokens - 1
        return found + ([DraftPass(self.module, further, more)] if more else [])

    @cached_property
    def projection_s(self) -> NDArray[np.float64]:
        """Seconds of what stands before a drafting module's layers, by number of tokens: the
        product with a token's hidden vector and its successor's embedding, which every rank
        computes whole.
        """
        hidden = self.placement.model.hidden_size
        return self._linears_s((Linear("projection", 2 * hidden, hidden, "whole"),), dtype="bf16")

    @cached_property
    def experts(self) -> ExpertPrices:
        """Prices of the routed experts and their exchanges."""
        if self.placement.experts is None or self.placement.model.moe is None:
            raise ValueError(f"{self.placement.model.name} has no routed experts")
        offload = None
        if self.placement.offload is not None:
            offload = OffloadPrices(self.placement, self.placement.offload, self._beside_experts_s)
        return ExpertPrices(
            self.placement, self.placement.experts, self.placement.model.moe, offload
        )

    def _beside_experts_s(self, num_tokens: int) -> float:
        """Seconds of the mean layer of so many tokens without its experts and its attention
        context.
        """
        row = int(np.searchsorted(self._rows, num_tokens))
        total_s = sum(count * self.mixer_s[name][row] for name, count in self.mixer_layers.items())
        total_s += sum(count * self.ffn_s[name][row] for name, count in self.ffn_layers.items())
        return float(total_s) / self.placement.model.num_layers

    def expert_step(self, layer: int, tokens_d: NDArray[np.int64], offset: int) -> ExpertStep:
        """Price the routed experts of MoE layer ``layer`` for ``tokens_d`` tokens on each
        data-parallel rank.

        Args:
            offset: where in the pool of recorded choices the step's tokens begin.
        """
        return self.experts.steps(tokens_d, [(layer, offset)])[0]

    @cached_property
    def overlapped_layers(self) -> range:
        """Layers that two-batch overlap would run in halves: from the first to the last with routed
        experts, as in SGLang.
        """
        found = self.placement.model.moe_layers
        return range(found[0], found[-1] + 1) if found else range(0)

    @property
    def halved_layers(self) -> range:
        """Layers that this placement runs in halves."""
        return self.overlapped_layers if self.placement.overlap == "two_batch" else range(0)

    @property
    def hides_shared(self) -> bool:
        """Whether shared experts compute while tokens travel to the routed ones."""
        return self.placement.overlap == "shared_experts"

    def parts(self, batch: Batch) -> tuple[Batch, ...]:
        """Split a batch for the overlapped layers: the whole batch, or its halves."""
        if not self.halved_layers:
            return (batch,)
        return halves(batch) or (batch,)

    def price_batch(self, batch: Batch, offset: int) -> PricedBatch:
        """Price the routed experts of a batch, once for its program and its loads.

        Args:
            offset: where in the pool of recorded choices its tokens begin.
        """
        parts = []
        for part in self.parts(batch):
            parts.append(PricedPart(part, self._price_part(part, offset)))
            offset += int(part.tokens_d.sum())
        return PricedBatch(batch, tuple(parts))

    def _price_part(self, part: Batch, offset: int) -> list[ExpertStep]:
        """Price the routed experts of every MoE layer for the tokens of a batch or of its half."""
        places = [(layer, offset) for layer in range(self.placement.model.num_moe_layers)]
        if not places:
            return []
        if self.choices is None or not part.requests:
            return self.experts.steps(part.tokens_d, places)
        return self.experts.price_tokens(self.choices.list_tokens(self.placement, part), places)

    def overheads_s(
        self, num_sequences: NDArray[np.float64], has_prompts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Seconds of engine overhead for steps with ``num_sequences`` on their fullest
        data-parallel rank, a share ``has_prompts`` of which have prompt tokens too.
        """
        engine = self.placement.calibration.engine
        own_s: NDArray[np.float64] = engine.step_s + sequences_s(num_sequences, engine.sequence_s)
        return own_s + self.placement.prompt_s * has_prompts

    @cached_property
    def read_bytes_per_step(self) -> float:
        """Bytes of weights other than routed experts and the embedding table that one rank of each
        stage reads for every batch.
        """
        return _count_read_bytes(self.placement)

    @cached_property
    def overlapped_bytes(self) -> float:
        """Bytes of weights other than routed experts in :attr:`halved_layers`, which each half
        reads anew.
        """
        return _count_layer_bytes(self.placement, self.halved_layers)

    @cached_property
    def mixer_layers(self) -> Counter[str]:
        """Number of layers with each mixer."""
        return Counter(mixer for mixer, _ in self.placement.model.layer_names if mixer != "none")

    @cached_property
    def ffn_layers(self) -> Counter[str]:
        """Number of layers with each feed-forward block."""
        return Counter(ffn for _, ffn in self.placement.model.layer_names if ffn != "none")


def _count_read_bytes(placement: Placement) -> float:
    """Bytes of weights other than routed experts and the embedding table that one rank of each
    stage reads for every batch.
    """
    model = placement.model
    left_out = model.num_embedding_parameters / placement.layout.tp * BYTES_PER_ELEMENT["bf16"]
    if model.ties_embeddings:
        left_out = 0.0  # the table is the output matrix too
    num_slots = None if placement.experts is None else placement.experts.placed.expert_LP.shape[1]
    if model.moe is not None:
        layer_bytes = expert_bytes_per_layer(
            model.moe,
            model.hidden_size,
            placement.layout,
            placement.precision,
            num_slots,
            placement.pruning,
        )
        left_out += model.num_moe_layers * layer_bytes
    one_stage = replace(placement.layout, pp=1)
    return (
        weight_bytes(model, one_stage, placement.precision, placement.pruning, num_slots) - left_out
    )


def _count_layer_bytes(placement: Placement, layers: range) -> float:
    """Bytes of one rank's matrices other than routed experts in some layers."""
    model, tp, dtype = placement.model, placement.layout.tp, placement.precision.weights
    blocks: dict[str, Mixer | FFN] = {**model.mixers, **model.ffns}
    names = [name for layer in layers for name in model.layer_names[layer] if name != "none"]
    return sum(linear_bytes(blocks[name].linears(model.hidden_size), tp, dtype) for name in names)


# Load of one step on its ranks: imbalance, bytes read and dropped pairs, logged beside its
# seconds.


class Loads(NamedTuple):
    """Loads of one step, in the order of the step log's columns."""

    imbalance: float
    """Ratio of the busiest rank's token-expert pairs to the mean rank's, averaged over MoE
    layers."""
    read_bytes: float
    """Bytes of weights and cache that the mean rank reads."""
    dropped_pairs: float
    """Token-expert pairs dropped in all layers."""


def measure_loads(prices: Prices, priced: PricedBatch) -> Loads:
    """Sum the loads of a batch over its layers and its halves."""
    imbalance, dropped_pairs = 0.0, 0.0
    read_bytes = prices.read_bytes_per_step + _sum_cache_bytes(prices, priced)
    read_bytes += (len(priced.parts) - 1) * prices.overlapped_bytes
    for part, steps in priced.parts:
        share = int(part.tokens_d.sum()) / int(priced.batch.tokens_d.sum())
        for step in steps:
            imbalance += share * float(find_imbalance(step.pairs_R)) / len(steps)
            read_bytes += step.read_bytes
            dropped_pairs += step.dropped_pairs
    return Loads(imbalance, read_bytes, dropped_pairs)


def _sum_cache_bytes(prices: Prices, priced: PricedBatch) -> float:
    """Bytes of the cache that the mean data-parallel rank reads."""
    return sum(
        term.num_layers * cost * float(prices.sum_contexts(term, phase, priced.batch)[:, 1].mean())
        for term in prices.context_kernels
        for phase, cost in zip(PHASES, (term.prefill_bytes, term.decode_bytes), strict=True)
    )


# Prices of a pipeline of stages beside those of its layers.


def sends_s(prices: Prices, num_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds that a batch travels between pipeline stages, for each number of tokens.

    Each tensor-parallel rank sends its part of the vectors, and those of the next stage gather
    them: half of an all-reduce, which scatters sums and gathers them.
    """
    placement = prices.placement
    if placement.sends is None:
        return np.zeros(len(num_tokens))
    vector_bytes = placement.model.hidden_size * BYTES_PER_ELEMENT[placement.precision.activations]
    sent_s = placement.sends.seconds(
        np.asarray(num_tokens * (VECTORS * vector_bytes / placement.layout.tp), dtype=np.float64)
    )
    if placement.layout.tp == 1:
        return sent_s
    gathered_s = (placement.layout.pp - 1) * prices.all_reduces_s(VECTORS * num_tokens) / 2
    return np.asarray(sent_s + gathered_s, dtype=np.float64)


def stage_shares(placement: Placement) -> tuple[float, float]:
    """Shares of all layers in a pipeline's longest stage, and in its last, which has the output
    head too. All layers count alike.
    """
    stages = [
        len(layers) for layers in stage_layers(placement.model.num_layers, placement.layout.pp)
    ]
    return max(stages) / sum(stages), stages[-1] / sum(stages)
