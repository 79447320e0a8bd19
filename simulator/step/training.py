"""Operations of a training pass, the texts that its tokens are of, and the seconds of a step
besides its passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.config.calibration import Calibration
from simulator.config.calibration.communication import CollectiveFit, doublings
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.ffns import FFN
from simulator.config.host import ExchangeTable, HostRates
from simulator.config.mixers import Mixer
from simulator.cost.comm import CommModel, Exchange
from simulator.cost.compute.trained import TrainedModel
from simulator.cost.stages import VECTORS
from simulator.deployment.expert_plan import DrawnDomains
from simulator.deployment.placement import Placement
from simulator.deployment.training.memory import count_optimized, count_stage, find_element_bytes
from simulator.deployment.training.plan import TrainingPlan
from simulator.policies.overflow import may_drop
from simulator.policies.pipelining import PassKind
from simulator.step.expert_choices import RecordedTokens
from simulator.step.expert_prices import ExpertStep
from simulator.step.operations import expert_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy, Operation, Together
from simulator.step.request_choices import RequestChoices
from simulator.work.trained import (
    Chunk,
    Operands,
    ParameterCount,
    Recompute,
    count_operands,
    count_weights,
)
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
            ring: links of the ranks that share a sequence; ``None`` without context parallelism.
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

    def _experts(self, layer: int, way: _Way, steps: list[ExpertStep]) -> list[Operation]:
        model, layout = self.placement.model, self.placement.layout
        step, moe = steps[model.moe_layers.index(layer)], model.moe
        assert moe is not None, "a layer with experts has some"
        linears = moe.expert_linears(model.hidden_size)
        weights = -(-moe.num_experts // layout.ep) * count_weights(linears, layout.moe_tp)
        seconds_R = self._multiply(step.experts_R, weights, way)
        seconds_R += self._convert(self._expert_operands, step.pairs_R, way)
        return expert_operations(self._prices, replace(step, experts_R=seconds_R), layer)

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


# Seconds behind and around the passes of a step: sums of gradients, updated weights, and the
# optimizer.
#
# Collectives are priced as rings of the calibrated library (reduce-scatter, all-gather), with one
# ring for each GPU that a group has in a node.


_VECTOR_BYTES = 2.0
_OPTIMIZER_SHARE = 0.8
"""Share of the memory's peak rate at which the optimizer reads and writes its state. Assumed: as
STREAM-like kernels do."""


class StageUpdate(NamedTuple):
    """Seconds of one stage besides its passes."""

    reduce_s: float
    """Sums of gradients over data-parallel ranks, once in a step, on links that carry nothing
    else."""
    gather_s: float
    """Updated weights to the ranks that do not hold their optimizer state, once in a step."""
    optimizer_s: float
    """The optimizer, and weights that are converted to 8 bits."""
    each_gather_s: float = 0.0
    """Weights that are gathered before each pass of a micro-batch (ZeRO 3), beneath its passes as
    far as these last."""
    each_reduce_s: float = 0.0
    """Gradients that are added up after each backward pass (ZeRO 2 and 3): a rank that keeps only
    its part of them must do so before those of the next micro-batch."""


def price_update(plan: TrainingPlan, stage: int) -> StageUpdate:
    """Price the update of a stage's weights, and what ZeRO 2 and 3 do for each micro-batch."""
    held, zero = count_stage(plan, stage), plan.spec.zero
    if isinstance(plan.placement.calibration, HostRates):
        return _price_on_host(plan, held, plan.placement.calibration)
    element = BYTES_PER_ELEMENT[plan.spec.optimizer.gradient_dtype]
    sums_s = _collect_stage(plan, "reduce_scatter", stage, held, element)
    weights_s = _collect_stage(plan, "all_gather", stage, held, find_element_bytes(plan))
    # Without ZeRO an all-reduce: sums are handed out before the optimizer needs them.
    handed_s = 0.0 if zero else _collect_stage(plan, "all_gather", stage, held, element)
    return StageUpdate(
        reduce_s=0.0 if zero >= 2 else sums_s + handed_s,
        gather_s=weights_s if zero in (1, 2) else 0.0,
        optimizer_s=_price_optimizer(plan, stage, element),
        each_gather_s=weights_s if zero == 3 else 0.0,
        each_reduce_s=sums_s if zero >= 2 else 0.0,
    )


def _price_on_host(plan: TrainingPlan, held: ParameterCount, rates: HostRates) -> StageUpdate:
    """Price the update on a machine's processes by its measured all-reduce and optimizer; copies of
    experts are summed by an exchange of their gradients.
    """
    element = BYTES_PER_ELEMENT[plan.spec.optimizer.gradient_dtype]
    number = np.array(held.dense + held.expert)
    optimizer_s = float(rates.training.optimizer.total(parameters=number))
    reduce_s = 0.0
    if plan.dense_group > 1:
        reduce_s += _time_exchange(rates.collectives.all_reduce, held.dense * element)
    if held.expert and plan.expert_group > 1:
        sent = held.expert * element * (plan.expert_group - 1)
        reduce_s += _time_exchange(rates.collectives.dispatch, sent)
    return StageUpdate(reduce_s, 0.0, optimizer_s)


def _time_exchange(table: ExchangeTable, num_bytes: float) -> float:
    """Seconds of an exchange of so many bytes of each rank."""
    return table.stagger_s + table.latency_s + float(table.seconds_for(np.array(num_bytes)))


def _collect_stage(
    plan: TrainingPlan, name: str, stage: int, held: ParameterCount, element_bytes: float
) -> float:
    """Seconds of a collective of all parameters of a stage, dense and routed experts'."""
    layout, of = plan.placement.layout, (plan, name, stage)
    dense_s = _collect(*of, held.dense * element_bytes, plan.dense_group, layout.tp)
    return dense_s + _collect(*of, held.expert * element_bytes, plan.expert_group, layout.num_ranks)


def _price_optimizer(plan: TrainingPlan, stage: int, gradient_bytes: float) -> float:
    """Seconds to read and write moments and master weights, to read gradients and to write weights;
    and to convert to 8 bits what a rank holds of them, which all micro-batches of a step then use
    (``is_first_microbatch`` of Transformer Engine).
    """
    optimizer = plan.spec.optimizer
    moved = 2.0 * (optimizer.state_bytes + optimizer.master_bytes)
    moved += gradient_bytes
    moved += find_element_bytes(plan)
    rate = plan.placement.accelerator.memory_bytes_per_s * _OPTIMIZER_SHARE
    compute, converted_s = plan.placement.compute, 0.0
    if isinstance(compute, TrainedModel):
        numbers = sum(count_stage(plan, stage, with_ends=False))
        converted_s = float(compute.convert_s(numbers, plan.spec.dtype))
    return count_optimized(plan, stage) * moved / rate + converted_s


def _collect(
    plan: TrainingPlan, name: str, stage: int, num_bytes: float, size: int, apart: int
) -> float:
    """Seconds of one collective of ``num_bytes`` over a group; all groups of a node go on at once,
    each over its own ports and cards, between nodes as many as where it has the fewest members.

    Args:
        size: members of the group.
        apart: ranks from one member to the next.
    """
    calibration, cluster = plan.placement.calibration, plan.cluster
    if size == 1 or num_bytes == 0.0 or not isinstance(calibration, Calibration):
        return 0.0
    ranks = stage * plan.stage_ranks + apart * np.arange(size)
    members_N = np.unique(ranks // cluster.gpus_per_node, return_counts=True)[1]
    fit: CollectiveFit = calibration.collective[name]
    start_s = inside_s = 0.0
    if (most := float(members_N.max())) > 1:
        start, carry = fit.parts_s(num_bytes, most, 1.0, cluster.scale_up.bytes_per_s)
        start_s, inside_s = float(start), float(carry)
    if len(members_N) == 1 or cluster.scale_out is None:
        return start_s + inside_s
    steps = float(doublings(len(members_N)))
    start_s += fit.scale_out_latency_s + fit.latency_per_doubling_s * steps
    cards = float(members_N.min())
    rate = cards * cluster.scale_out.bytes_per_s * (fit.scale_out_fraction or 1.0)
    between_s = num_bytes * (size - 1) / size / rate
    return float(np.maximum(inside_s, between_s)) + start_s


def price_sends(plan: TrainingPlan) -> dict[tuple[int, int], float]:
    """Price a micro-batch's vectors from one stage to another: each rank sends those of its own
    tokens, which tensor-parallel ranks share out (sequence parallelism).
    """
    # The calibrated transfer is of two vectors a token, as serving engines send them.
    vectors = plan.rank_tokens / plan.placement.layout.tp / VECTORS
    num_bytes = np.array([vectors * VECTORS * plan.model.hidden_size * _VECTOR_BYTES])
    return {stages: float(one.seconds(num_bytes)[0]) for stages, one in plan.sends.items()}
