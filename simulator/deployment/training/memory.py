"""Memory of a training step on the fullest GPU, component by component."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from simulator.base.errors import UserError
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.deployment.training.plan import TrainingPlan
from simulator.work.trained import Chunk, ParameterCount, count_kept, count_parameters

_LOGIT_BYTES = 4.0 + 2.0
"""Bytes of a logit: as the loss reads it, in fp32, and its gradient in bf16."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one GPU by component."""

    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    """Activations of all micro-batches that are on their way, and the logits of one."""

    @property
    def total_bytes(self) -> float:
        """Bytes of all components."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
        )


def find_element_bytes(plan: TrainingPlan) -> float:
    """Find the bytes of a weight that is computed with, and of a kept activation: 2, from which
    trainings in fp8 make theirs (matrices' inputs may be kept in 8 bits, which is not counted), or
    4 in fp32.
    """
    return BYTES_PER_ELEMENT[plan.placement.precision.activations]


def measure_memory(plan: TrainingPlan, imbalance: float = 1.0) -> TrainingMemory:
    """Measure the memory of the GPU that needs most.

    Args:
        imbalance: token-expert pairs of the busiest rank over the mean rank's, which the
            activations of experts grow with.
    """
    stages = (_measure_stage(plan, stage, imbalance) for stage in range(plan.num_stages))
    return max(stages, key=lambda one: one.total_bytes)


def check_training_memory(plan: TrainingPlan, imbalance: float, where: str) -> TrainingMemory:
    """Measure the memory, and refuse what does not fit.

    Raises:
        UserError: with the figures, and the smallest change that would fit, if there is one.
    """
    found, room = measure_memory(plan, imbalance), find_room(plan)
    if found.total_bytes <= room:
        return found
    parts = ", ".join(
        f"{name} {size / 1e9:,.1f}"
        for name, size in (
            ("weights", found.weights_bytes),
            ("gradients", found.gradients_bytes),
            ("optimizer", found.optimizer_bytes),
            ("activations", found.activations_bytes),
        )
    )
    does = next(
        (
            f"; {text} fits"
            for text, other in _list_others(plan)
            if measure_memory(other, imbalance).total_bytes <= room
        ),
        "; more GPUs with a larger pp, tp or ep are needed",
    )
    raise UserError(
        f"{where} [deployments '{plan.name}']: needs {found.total_bytes / 1e9:,.1f} GB a GPU "
        f"({parts}), and {room / 1e9:,.1f} GB of {plan.placement.accelerator.title} are free{does}"
    )


def find_room(plan: TrainingPlan) -> float:
    """Find the bytes of a GPU that training may fill."""
    return plan.placement.accelerator.servable_memory_bytes * plan.spec.memory_fraction


def list_chunks(plan: TrainingPlan, stage: int) -> list[Chunk]:
    """List the chunks of a stage, in the order of layers."""
    return [
        chunk for place, chunk in zip(plan.places, plan.chunks, strict=True) if place.stage == stage
    ]


def count_stage(plan: TrainingPlan, stage: int, *, with_ends: bool = True) -> ParameterCount:
    """Count the parameters of all chunks of a stage on one rank.

    Args:
        with_ends: whether the embedding table, the last norm and the output matrix count.
    """
    chunks = list_chunks(plan, stage)
    if not with_ends:
        chunks = [Chunk(chunk.layers, has_embedding=False, has_head=False) for chunk in chunks]
    counts = [count_parameters(plan.model, plan.placement.layout, chunk) for chunk in chunks]
    return ParameterCount(sum(one.dense for one in counts), sum(one.expert for one in counts))


def count_optimized(plan: TrainingPlan, stage: int) -> float:
    """Count the parameters of a stage whose optimizer state one rank holds."""
    held = count_stage(plan, stage)
    if plan.spec.zero == 0:
        return held.dense + held.expert
    return held.dense / plan.dense_group + held.expert / plan.expert_group


def find_peak(plan: TrainingPlan, stage: int, size_of_chunk: dict[int, float]) -> float:
    """Find the most that the activations of a stage take at one time: those of a pass forward are
    kept until its last gradients are made.

    Args:
        size_of_chunk: of one micro-batch in each chunk of the stage.
    """
    held = most = 0.0
    for turn in plan.turns[stage]:
        for one in turn:
            if one.kind == "forward":
                held += size_of_chunk[one.chunk]
                most = max(most, held)
        held -= sum(size_of_chunk[one.chunk] for one in turn if one.kind in ("backward", "weight"))
    return most


def list_sizes(plan: TrainingPlan, stage: int, imbalance: float) -> dict[int, float]:
    """List the bytes that one micro-batch keeps in each chunk of a stage on one rank.

    With ``recompute = "experts"`` or ``"full"`` one layer at a time keeps everything besides.
    """
    recompute, tp = plan.spec.recompute, plan.placement.layout.tp
    pairs = plan.rank_tokens / tp * _count_choices(plan) * imbalance
    found = {}
    for place, chunk in zip(plan.places, plan.chunks, strict=True):
        if place.stage != stage:
            continue
        total = 0.0
        for names in plan.model.layer_names[chunk.layers.start : chunk.layers.stop]:
            kept = count_kept(plan.model, *names, recompute)
            total += kept.per_token * plan.rank_tokens / tp + kept.per_pair * pairs
        found[place.chunk] = total * find_element_bytes(plan)
    return found


def _count_choices(plan: TrainingPlan) -> int:
    moe = plan.model.moe
    return 0 if moe is None else moe.top_k


def _measure_stage(plan: TrainingPlan, stage: int, imbalance: float) -> TrainingMemory:
    spec, held = plan.spec, count_stage(plan, stage)
    everything = held.dense + held.expert
    shared = held.dense / plan.dense_group + held.expert / plan.expert_group
    optimizer, gathered = spec.optimizer, 0.0
    if spec.zero == 3:
        gathered = _count_largest_layer(plan, stage)
    kept = find_peak(plan, stage, list_sizes(plan, stage, imbalance))
    if spec.recompute in ("experts", "full"):
        kept += _measure_layer(plan, stage, imbalance)
    if plan.places[-1].stage == stage:
        logits = plan.rank_tokens * plan.model.vocab_size / plan.placement.layout.tp
        kept += logits * _LOGIT_BYTES
    return TrainingMemory(
        # A layer is gathered while the one before it computes.
        weights_bytes=find_element_bytes(plan)
        * (shared + 2 * gathered if spec.zero >= 3 else everything),
        gradients_bytes=BYTES_PER_ELEMENT[optimizer.gradient_dtype]
        * (shared + gathered if spec.zero >= 2 else everything),
        optimizer_bytes=(optimizer.state_bytes + optimizer.master_bytes)
        * count_optimized(plan, stage),
        activations_bytes=kept,
    )


def _count_largest_layer(plan: TrainingPlan, stage: int) -> float:
    """Count the parameters of a stage's largest layer on one rank before they are shared out, with
    the embedding table or the output matrix where it has one.
    """
    model, layout = plan.model, plan.placement.layout
    return max(
        sum(count_parameters(model, layout, part))
        for chunk in list_chunks(plan, stage)
        for part in _cut_layers(chunk)
    )


def _cut_layers(chunk: Chunk) -> Iterator[Chunk]:
    """Cut a chunk into chunks of a layer each."""
    layers = chunk.layers
    if len(layers) < 2:
        yield chunk
        return
    for layer in layers:
        has_embedding = chunk.has_embedding and layer == layers.start
        has_head = chunk.has_head and layer == layers.stop - 1
        yield Chunk(range(layer, layer + 1), has_embedding, has_head)


def _measure_layer(plan: TrainingPlan, stage: int, imbalance: float) -> float:
    """Bytes of all that the largest layer of a stage keeps of one micro-batch."""
    tp = plan.placement.layout.tp
    tokens = plan.rank_tokens / tp
    pairs = tokens * _count_choices(plan) * imbalance
    names = {
        plan.model.layer_names[layer]
        for chunk in list_chunks(plan, stage)
        for layer in chunk.layers
    }
    kept = [count_kept(plan.model, *each, "none") for each in names]
    return find_element_bytes(plan) * max(
        (one.per_token * tokens + one.per_pair * pairs for one in kept), default=0.0
    )


def _list_others(plan: TrainingPlan) -> Iterator[tuple[str, TrainingPlan]]:
    """Yield changes of the plan that save memory, the cheapest first, each with its text."""
    spec = plan.spec
    changes: list[dict[str, object]] = [
        {"recompute": "selective"} if spec.recompute == "none" else {},
        {"zero": 1} if spec.zero < 1 else {},
        {"recompute": "experts"} if spec.recompute in ("none", "selective") else {},
        {"micro_batch": 1} if spec.micro_batch > 1 else {},
        {"micro_batch": 1, "recompute": "selective"} if spec.micro_batch > 1 else {},
        {"recompute": "full"} if spec.recompute != "full" else {},
        {"recompute": "full", "zero": 2} if spec.zero < 2 else {},
        {"recompute": "full", "zero": 3} if spec.zero < 3 else {},
    ]
    for change in filter(None, changes):
        text = ", ".join(f"{key} = {_write(value)}" for key, value in change.items())
        count = (
            plan.num_micro_batches
            * spec.micro_batch
            // int(str(change.get("micro_batch", spec.micro_batch)))
        )
        other = spec.model_copy(update=change)
        if plan.policy.find_refusal(plan.num_stages, count) is None:
            yield text, replace(plan, spec=other, num_micro_batches=count)


def _write(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
