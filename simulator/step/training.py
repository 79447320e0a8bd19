"""Operations of a training pass, and the texts that its tokens are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.config.calibration import Calibration
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.ffns import FFN
from simulator.config.host import HostRates
from simulator.config.mixers import Mixer
from simulator.cost.comm import CommModel, Exchange
from simulator.cost.compute.trained import TrainedModel
from simulator.deployment.expert_plan import DrawnDomains
from simulator.deployment.placement import Placement
from simulator.deployment.training.plan import TrainingPlan
from simulator.policies.overflow import may_drop
from simulator.policies.pipelining import PassKind
from simulator.step.expert_choices import RecordedTokens
from simulator.step.expert_prices import ExpertStep
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy, Operation, Together
from simulator.step.request_choices import RequestChoices
from simulator.work.trained import Chunk, Operands, Recompute, count_operands, count_weights
from simulator.workload.traces import RequestTrace

_MOST_TOKENS = 16_384
"""Most tokens of a micro-batch that are looked up: one of each of so many equal stretches."""


class SequenceTexts(RequestChoices):
    """Recorded tokens that sequences take their experts from."""

    def list_tokens(self, placement: Placement, batch: Batch) -> RecordedTokens:
        """List the tokens of a micro-batch, or some that stand for all; all of them where some are
        dropped, which each depends on the others for.

        One is drawn from each stretch: evenly spaced ones would be the same few of the recorded
        tokens, which long sequences repeat.
        """
        experts = placement.experts
        assert experts is not None
        recorded_T = self.find_tokens(batch)
        if len(recorded_T) > _MOST_TOKENS and not may_drop(experts.overflow):
            place_T = np.arange(_MOST_TOKENS) + placement.rng("places").random(_MOST_TOKENS)
            recorded_T = recorded_T[(place_T * (len(recorded_T) / _MOST_TOKENS)).astype(np.int64)]
        layout = placement.layout
        return RecordedTokens(experts, layout, batch.tokens_d, self.recorded, recorded_T)


def find_kinds(placement: Placement) -> DrawnDomains | None:
    """Find the kinds of text that use experts of their own; ``None`` where all use the same."""
    kinds = None if placement.experts is None else placement.experts.domains
    return None if kinds is None or kinds.num_kinds == 1 else kinds


def draw_texts(
    placement: Placement, num_sequences: int, sequence_tokens: int
) -> SequenceTexts | None:
    """Draw the kind of text of each sequence; ``None`` where all use the same experts."""
    kinds = find_kinds(placement)
    if kinds is None:
        return None
    drawn = kinds.sequences
    trace = RequestTrace(
        arrival_s=np.zeros(num_sequences),
        num_input=np.full(num_sequences, sequence_tokens, dtype=np.int64),
        num_output=np.ones(num_sequences, dtype=np.int64),
        provenance="sequences of a training",
        domains=drawn.domains,
        domain=placement.rng("kinds of text").integers(len(drawn.domains), size=num_sequences),
    )
    return SequenceTexts(drawn, trace, placement.rng("texts"))


ATTENTION_RATIO = 2.5 * 648 / 561
"""Ratio of the seconds of attention's backward pass to those of its forward pass: it makes the
scores again, five products for two (FlashAttention-2, arXiv:2307.08691, section 4.1), at 561
TFLOP/s where the forward pass reaches 648 (FlashAttention-3, arXiv:2407.08608, figures 5 and 6:
H100, heads of 128, 16,384 tokens; cuDNN's kernels, 516 and 595, have the same ratio)."""


Redone = Literal["nothing", "experts", "layers"]
"""Part of the forward pass that a backward pass computes again."""
_REDONE: dict[Recompute, Redone] = {
    "none": "nothing",
    "selective": "nothing",
    "experts": "experts",
    "full": "layers",
}


class _Way(NamedTuple):
    """Factors of a pass on the seconds of the forward pass."""

    inputs: float
    """Factor on products that make outputs, or gradients of inputs."""
    weights: float
    """Factor on products that make gradients of weights."""
    attention: float
    """Factor on attention over the context."""
    converts: Literal["inputs", "gradients", "nothing"]
    """Operands that are converted to 8 bits: gradients for both products that read them."""


_FORWARD = _Way(1.0, 0.0, 1.0, "inputs")
_DRAWN_MICRO_BATCHES = 4
"""Micro-batches that stand for all where sequences differ in the experts that they use."""


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

    def count_sequences(self, num_groups: int) -> int:
        """Count the sequences that so many data- and context-parallel groups have a part of."""
        return -(-num_groups // self.cp) * self.sequences

    def split(self, num_groups: int, first_sequence: int = 0) -> Batch:
        """Split the micro-batch over data- and context-parallel groups. A group computes a part
        from the front of a sequence and one from its back, so that all attend to equally much
        (Megatron-LM's context parallelism).

        Args:
            first_sequence: number of the first sequence, which its requests are called by.
        """
        part = self.sequence_tokens // (2 * self.cp)
        new, context, numbers = [], [], []
        for group in range(num_groups):
            front = group % self.cp
            starts = [front * part, (2 * self.cp - 1 - front) * part] if self.cp > 1 else [0]
            length = part if self.cp > 1 else self.sequence_tokens
            new.append(np.full(len(starts) * self.sequences, length, dtype=np.int64))
            context.append(np.tile(np.array(starts, dtype=np.int64), self.sequences))
            own = first_sequence + group // self.cp * self.sequences + np.arange(self.sequences)
            numbers.append(np.repeat(own, len(starts)))
        never = tuple(np.zeros(len(one), dtype=np.bool_) for one in new)
        logits = np.full(num_groups, self.rank_tokens, dtype=np.int64)
        return Batch(tuple(new), tuple(context), never, logits, tuple(numbers))


def price_micro_batch(plan: TrainingPlan) -> TrainingPrices:
    """Price the passes of a plan's micro-batches."""
    spec = plan.spec
    micro_batch = MicroBatch(spec.micro_batch, plan.training.sequence_tokens, spec.parallel.cp)
    return TrainingPrices(
        plan.placement,
        micro_batch,
        plan.ring,
        spec.backward_ratio,
        redone=_REDONE[spec.recompute],
        gradient_bytes=BYTES_PER_ELEMENT[spec.optimizer.gradient_dtype],
    )


def find_rank_imbalance(prices: TrainingPrices) -> float:
    """Find the token-expert pairs of the busiest rank in all layers over the mean rank's, in the
    micro-batch where that is most.
    """
    pairs_MR = prices.pairs_MR
    return float((pairs_MR.max(axis=1) / pairs_MR.mean(axis=1)).max()) if pairs_MR.any() else 1.0


class TrainingPrices:
    """Prices of the passes of one micro-batch on a block of ranks."""

    def __init__(
        self,
        placement: Placement,
        micro_batch: MicroBatch,
        ring: CommModel | None,
        backward_ratio: float,
        redone: Redone,
        gradient_bytes: float,
    ) -> None:
        """Prepare prices; each is computed on first use.

        Args:
            ring: wires of the ranks that share a sequence; ``None`` without context parallelism.
            backward_ratio: seconds of a matrix product's backward pass over its forward ones.
            redone: part of the forward pass that a backward pass begins with.
            gradient_bytes: bytes of a gradient that is added up.
        """
        self.placement = placement
        self._ring = ring
        self.micro_batch = micro_batch
        self._ratio = backward_ratio
        self._redone = redone
        self._gradient_bytes = gradient_bytes
        rates = placement.calibration
        self._measured = rates.training if isinstance(rates, HostRates) else None
        self.num_drawn = 1 if find_kinds(placement) is None else _DRAWN_MICRO_BATCHES
        """Micro-batches ``M`` that stand for all."""
        self._priced: dict[int, list[ExpertStep]] = {}

    @cached_property
    def _prices(self) -> Prices:
        """Prices of blocks with a micro-batch's tokens, and of the experts that these choose."""
        micro_batch = self.micro_batch
        rows = np.array([0, micro_batch.rank_tokens], dtype=np.int64)
        groups = self.placement.layout.attention_dp
        count = self.num_drawn * micro_batch.count_sequences(groups)
        texts = draw_texts(self.placement, count, micro_batch.sequence_tokens)
        return Prices(self.placement, micro_batch.rank_tokens, rows, texts)

    @cached_property
    def batch(self) -> Batch:
        """Batch of all groups of the block."""
        return self._draw_batch(0)

    def _draw_batch(self, number: int) -> Batch:
        groups = self.placement.layout.attention_dp
        return self.micro_batch.split(groups, number * self.micro_batch.count_sequences(groups))

    @cached_property
    def expert_steps_M(self) -> list[list[ExpertStep]]:
        """Priced experts of every MoE layer, for each of the micro-batches that stand for all."""
        return [self._price_experts(number) for number in range(self.num_drawn)]

    def _price_experts(self, number: int) -> list[ExpertStep]:
        """Price the experts of one of the micro-batches that stand for all, once."""
        if self.placement.experts is None:
            return []
        if number not in self._priced:
            batch = self._draw_batch(number)
            self._priced[number] = self._prices.price_batch(batch, 0).parts[0].steps
        return self._priced[number]

    @property
    def pairs_MR(self) -> NDArray[np.float64]:
        """Token-expert pairs of each rank in all layers, ``[M, R]``."""
        none_R = np.zeros(self.placement.layout.num_ranks)
        return np.array(
            [sum((step.pairs_R for step in own), none_R) for own in self.expert_steps_M]
        )

    @cached_property
    def _context_s(self) -> dict[str, NDArray[np.float64]]:
        """Seconds of one layer's attention over the context, by mixer, on each rank."""
        tp = self.placement.layout.tp
        return {
            name: np.repeat(self._prices.mixer_context_s(name, self.batch), tp)
            for name in self.placement.model.mixers
        }

    def list_operations(
        self, chunk: Chunk, kind: PassKind, micro_batch: int = 0
    ) -> list[Operation]:
        """List the operations of a pass through a chunk of layers, in order. One with the head
        makes the logits, or their gradients.

        Args:
            micro_batch: among those that stand for all.
        """
        way, steps = self._ways[kind], self._price_experts(micro_batch)
        operations = [*self._layers(chunk.layers, way, steps)]
        if chunk.has_head:
            operations.append(self._head(way))
        if self._measured is not None:
            ratios = self._measured.forward if kind == "forward" else self._measured.backward
            operations = [_scale(one, ratios) for one in operations]
        if kind == "forward":
            return operations
        if kind == "weight":
            return [one for one in operations if isinstance(one, Busy)]
        return [*self._redo(chunk.layers, steps), *reversed(operations)]

    @cached_property
    def _ways(self) -> dict[PassKind, _Way]:
        if self._measured is not None:  # the forward pass, times what was measured of whole blocks
            return {"forward": _FORWARD, "backward": _FORWARD}
        half = self._ratio / 2.0
        return {
            "forward": _FORWARD,
            "input": _Way(half, 0.0, ATTENTION_RATIO, "gradients"),
            "weight": _Way(0.0, half, 0.0, "nothing"),
            "backward": _Way(half, half, ATTENTION_RATIO, "gradients"),
        }

    def _redo(self, layers: range, steps: list[ExpertStep]) -> Iterator[Operation]:
        """Yield what is computed again before the gradients."""
        if self._redone == "layers":
            yield from self._layers(layers, _FORWARD, steps)
        if self._redone == "experts":
            for layer in layers:
                if self.placement.model.has_experts(self.placement.model.layer_names[layer][1]):
                    yield from self._experts(layer, _FORWARD, steps)

    def _layers(self, layers: range, way: _Way, steps: list[ExpertStep]) -> Iterator[Operation]:
        """Yield the operations of layers."""
        model = self.placement.model
        mixers_s = {name: self._price_mixer(name, way) for name in model.mixers}
        ffns_s = {name: self._price_ffn(name, way) for name in model.ffns}
        for layer in layers:
            mixer, ffn = model.layer_names[layer]
            after_mixer, after_ffn = self._prices.all_reduces(ffn, mixer)
            if mixer != "none":
                yield Busy("attention", layer, mixers_s[mixer])
                yield from self._pass_on(layer, mixer, way)
            if after_mixer:
                yield self._sum(layer)
            if ffn != "none":
                yield Busy("dense", layer, ffns_s[ffn])
            if model.has_experts(ffn):
                yield from self._experts(layer, way, steps)
            if after_ffn:
                yield self._sum(layer)

    def _price_mixer(self, name: str, way: _Way) -> NDArray[np.float64]:
        """Seconds of a layer's mixer on each rank, ``[R]``."""
        seconds = self._price_linears(
            float(self._prices.mixer_s[name][1]), self.placement.model.mixers[name], way
        )
        return self.placement.slow_down(seconds + way.attention * self._context_s[name])

    def _price_ffn(self, name: str, way: _Way) -> NDArray[np.float64]:
        """Seconds of a layer's feed-forward block without routed experts on each rank, ``[R]``."""
        seconds = self._price_linears(
            float(self._prices.ffn_s[name][1]), self.placement.model.ffns[name], way
        )
        return self.placement.slow_down(np.full(self.placement.layout.num_ranks, seconds))

    def _price_linears(self, forward_s: float, block: Mixer | FFN, way: _Way) -> float:
        """Seconds of a block's matrices that every token passes through."""
        hidden, tp = self.placement.model.hidden_size, self.placement.layout.tp
        linears = block.linears(hidden)
        products_s = self._multiply(forward_s, count_weights(linears, tp), way)
        operands = count_operands(linears, hidden, tp)
        return float(products_s + self._convert(operands, self.micro_batch.rank_tokens, way))

    def _convert(self, operands: Operands, rows: ArrayLike, way: _Way) -> NDArray[np.float64]:
        """Seconds to convert operands of products with so many rows to the weights' format."""
        compute, dtype = self.placement.compute, self.placement.precision.weights
        numbers = np.asarray(rows, dtype=np.float64)
        if way.converts == "nothing" or not isinstance(compute, TrainedModel):
            return np.zeros_like(numbers)
        if way.converts == "gradients":
            return compute.convert_s(numbers * operands.gradients, dtype)
        return compute.convert_s(numbers * operands.inputs, dtype, numbers * operands.behind_norm)

    def _multiply(self, forward_s: ArrayLike, weights: float, way: _Way) -> NDArray[np.float64]:
        """Seconds of products and of what is done beside them.

        Args:
            forward_s: of the forward pass, by rank or for all.
            weights: numbers in the matrices on one rank, whose gradients are added up.
        """
        inputs_s = np.asarray(forward_s, dtype=np.float64) * way.inputs
        weights_s = np.asarray(forward_s, dtype=np.float64) * way.weights
        calibration = self.placement.calibration
        if not way.weights or not isinstance(calibration, Calibration):
            return np.asarray(inputs_s + weights_s)
        fit = calibration.matrices("bf16")
        rate = self.placement.accelerator.memory_bytes_per_s * fit.memory_fraction
        added_s = 2.0 * self._gradient_bytes * weights / rate  # read and written
        together_s = (weights_s**fit.overlap + added_s**fit.overlap) ** (1.0 / fit.overlap)
        return np.asarray(inputs_s + together_s)

    def _experts(self, layer: int, way: _Way, steps: list[ExpertStep]) -> Iterator[Operation]:
        model, layout = self.placement.model, self.placement.layout
        step, moe = steps[model.moe_layers.index(layer)], model.moe
        assert moe is not None, "a layer with experts has some"
        linears = moe.expert_linears(model.hidden_size)
        weights = -(-moe.num_experts // layout.ep) * count_weights(linears, layout.moe_tp)
        seconds_R = self._multiply(step.experts_R, weights, way)
        seconds_R += self._convert(self._expert_operands, step.pairs_R, way)
        busy = Busy("experts", layer, seconds_R)
        if not layout.travels:
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

    @cached_property
    def _expert_operands(self) -> Operands:
        """Operands of a routed expert's products, whose rows are permuted behind the norm."""
        model = self.placement.model
        assert model.moe is not None, "a layer with experts has some"
        linears = model.moe.expert_linears(model.hidden_size)
        found = count_operands(linears, model.hidden_size, self.placement.layout.moe_tp)
        return Operands(0.0, found.behind_norm + found.inputs, found.gradients)

    def _sum(self, layer: int) -> Operation:
        """Make the operation of one layer's reduce-scatter and all-gather over tensor-parallel
        ranks (sequence parallelism), which is an all-reduce.
        """
        return Together("collective", layer, self._prices.tensor_groups, self._sums)

    @cached_property
    def _sums(self) -> tuple[Exchange, ...]:
        """Exchange of each tensor-parallel group behind a block, the same in every layer."""
        tokens, groups = self.micro_batch.rank_tokens, range(len(self._prices.tensor_groups))
        return tuple(self._prices.all_reduce(d, tokens) for d in groups)

    def _pass_on(self, layer: int, mixer: str, way: _Way) -> Iterator[Operation]:
        """Yield what keys and values take on their way round the context-parallel ring beyond the
        attention that they travel beneath. Their gradients go round once more.
        """
        if self._ring is None or not way.attention:
            return
        rounds = 2.0 if way.attention > 1.0 else 1.0
        hidden_s = way.attention * float(self._context_s[mixer].max())
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

    def _head(self, way: _Way) -> Operation:
        model = self.placement.model
        weights = model.vocab_size * model.hidden_size / self.placement.layout.tp
        seconds = self._multiply(float(self._prices.head_s[1]), weights, way)
        return Busy("dense", -1, np.full(self.placement.layout.num_ranks, seconds))


def _scale(operation: Operation, ratios: Mapping[str, float]) -> Operation:
    """Scale a computation by its phase's ratio; exchanges stay as they are."""
    if not isinstance(operation, Busy):
        return operation
    return operation._replace(seconds_R=operation.seconds_R * ratios[operation.phase])
