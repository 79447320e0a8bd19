"""Splits of a training that are considered, and the seconds by which they are ranked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from simulator.config.cluster import ClusterSpec, load_kind
from simulator.config.model import LayerRun, ModelSpec
from simulator.config.training import TrainingDeployment, TrainingParallel
from simulator.config.training_question import TrainedModel, TrainingCluster, TrainingQuestion
from simulator.deployment.training.plan import TrainingPlan
from simulator.policies.pipelining import PassKind
from simulator.step.program import Busy, Together
from simulator.step.training import price_micro_batch
from simulator.work.layout import Layout, uneven_heads
from simulator.work.trained import Chunk, count_parameters

_PASSES: tuple[PassKind, ...] = ("forward", "backward")
_LAYERS_OF_A_KIND = 2
"""Layers of each kind that are priced: they differ by the experts that tokens choose."""


class LayerTimes(NamedTuple):
    """Seconds of one micro-batch, forward and backward."""

    layers_s: float
    """All layers."""
    head_s: float
    """Output matrix, which the last stage has."""


def shorten_model(model: ModelSpec) -> ModelSpec:
    """Shorten a model to a few layers of each kind, in their order."""
    kinds = dict.fromkeys(model.layer_names)
    pattern = tuple(kind for kind in kinds for _ in range(_LAYERS_OF_A_KIND))
    fields = {name: getattr(model, name) for name in ModelSpec.model_fields}
    return ModelSpec.model_construct(**(fields | {"layers": (LayerRun(pattern=pattern),)}))


def time_layers(plan: TrainingPlan, model: ModelSpec) -> LayerTimes:
    """Time all layers of a model by those of its shortened one, every exchange with wires of its
    own.

    Args:
        plan: of the shortened model.
    """
    prices, counts = price_micro_batch(plan), Counter(model.layer_names)
    layers_s = head_s = 0.0
    for number, kind in enumerate(plan.model.layer_names):
        weight = counts[kind] / _LAYERS_OF_A_KIND
        chunk = Chunk(range(number, number + 1), number == 0, number == plan.model.num_layers - 1)
        for way in _PASSES:
            for operation in prices.list_operations(chunk, way):
                assert isinstance(operation, Busy | Together), "trainings start nothing ahead"
                seconds = _time_operation(operation)
                if operation.layer < 0:
                    head_s += seconds
                else:
                    layers_s += weight * seconds
    return LayerTimes(layers_s, head_s)


def _time_operation(operation: Busy | Together) -> float:
    if isinstance(operation, Busy):
        return float(operation.seconds_R.max())
    return max(exchange.alone_s for exchange in operation.exchanges)


def estimate_step(times: LayerTimes, split: Split, batch: int) -> float:
    """Estimate the seconds of a step in closed form; gradients and the optimizer are left out.

    Args:
        batch: sequences of a step.
    """
    stage_s = times.layers_s / split.pp + times.head_s
    rounds = split.count_micro_batches(batch) + (split.pp - 1) / split.chunks
    return rounds * stage_s


_MOST_EP = 64
"""Most expert-parallel ranks that are tried."""
_MOST_STAGES = 16
_CHUNKS = (4, 2, 1)
"""Chunks of layers on a stage, the most that divide what there is are taken."""
_LEAST_BYTES = 4.0
"""Bytes of a parameter and its gradient in bf16."""
_MICRO_BATCHES = (1, 2, 4, 8)


class Split(NamedTuple):
    """A way to train on some GPUs."""

    num_gpus: int
    tp: int
    pp: int
    ep: int
    chunks: int
    micro_batch: int
    recompute: Literal["none", "selective", "experts", "full"]

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.num_gpus // (self.tp * self.pp)

    def count_micro_batches(self, global_batch: int) -> int:
        """Count the micro-batches of a step on each data-parallel rank."""
        return global_batch // (self.dp * self.micro_batch)


def list_sizes(offer: TrainingCluster, where: str) -> list[int]:
    """List the numbers of GPUs that are tried: a part of a node doubled up to a whole one, then
    nodes doubled.
    """
    cluster, _ = load_kind(offer.cluster, where)
    node = cluster.gpus_per_node
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < node]
    size = node
    while size <= offer.max_gpus and (size == node or cluster.scale_out is not None):
        sizes.append(size)
        size *= 2
    return [size for size in sizes if size <= offer.max_gpus]


def find_least(model: ModelSpec, split: Split) -> float:
    """Find the least bytes that a GPU of a split holds: weights and gradients of a mean stage, the
    optimizer shared out and activations left out.
    """
    layout = Layout(split.tp, max(split.tp, split.ep) // split.tp, split.ep)
    count = count_parameters(model, layout, Chunk(range(model.num_layers), True, True))
    return (count.dense + count.expert) / split.pp * _LEAST_BYTES


def list_splits(model: ModelSpec, cluster: ClusterSpec, num_gpus: int, batch: int) -> list[Split]:
    """List the splits of a model over a number of GPUs.

    Args:
        batch: sequences of a step.
    """
    return list(_yield_splits(model, cluster, num_gpus, batch))


def _yield_splits(
    model: ModelSpec, cluster: ClusterSpec, num_gpus: int, batch: int
) -> Iterator[Split]:
    node = cluster.gpus_per_node
    for tp in _list_powers(min(node, num_gpus)):
        if uneven_heads(model, tp) is not None:
            continue
        if num_gpus % tp:
            continue
        for pp in _list_divisors(num_gpus // tp, min(_MOST_STAGES, model.num_layers)):
            ranks = num_gpus // pp
            for ep in _list_groups(model, tp, ranks):
                yield from _yield_batches(model, Split(num_gpus, tp, pp, ep, 1, 1, "none"), batch)


def _list_groups(model: ModelSpec, tp: int, ranks: int) -> list[int]:
    """List the sizes of expert-parallel groups: multiples or divisors of ``tp`` that divide the
    ranks of a stage.
    """
    if model.moe is None:
        return [1]
    most = min(model.moe.num_experts, ranks, _MOST_EP)
    return [
        ep
        for ep in _list_divisors(ranks, most)
        if ranks % max(ep, tp) == 0
        and max(ep, tp) % min(ep, tp) == 0
        and model.moe.num_experts % ep == 0
    ]


def _yield_batches(model: ModelSpec, split: Split, batch: int) -> Iterator[Split]:
    for micro_batch in _MICRO_BATCHES:
        if batch % (split.dp * micro_batch):
            continue
        count = batch // (split.dp * micro_batch)
        chunks = _choose_chunks(model, split.pp, count)
        for recompute in ("none", "selective", "experts", "full"):
            if recompute == "experts" and model.moe is None:
                continue
            yield split._replace(micro_batch=micro_batch, chunks=chunks, recompute=recompute)


def _choose_chunks(model: ModelSpec, pp: int, micro_batches: int) -> int:
    """Choose the most chunks of layers: the bubble is divided by them."""
    if pp == 1 or micro_batches % pp:
        return 1
    return next(chunks for chunks in _CHUNKS if pp * chunks <= model.num_layers)


def _list_divisors(number: int, most: int) -> list[int]:
    return [one for one in range(1, min(number, most) + 1) if number % one == 0]


def _list_powers(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length())]


def describe_split(
    question: TrainingQuestion, entry: TrainedModel, offer: TrainingCluster, split: Split
) -> TrainingDeployment:
    """Describe a split as a deployment that ``moesim run`` takes."""
    keys: dict[str, Any] = {
        key: value
        for key in ("model", "dense_of", "moe_of", "routing")
        if (value := getattr(entry, key))
    }
    kind = "interleaved" if split.chunks > 1 else "one_f_one_b"
    pipelining: dict[str, Any] = {"kind": kind}
    if split.chunks > 1:
        pipelining["chunks"] = split.chunks
    return TrainingDeployment(
        name=entry.title,
        cluster=offer.cluster,
        num_gpus=split.num_gpus,
        parallel=TrainingParallel(tp=split.tp, pp=split.pp, ep=split.ep if split.ep > 1 else None),
        pipelining=pipelining,
        micro_batch=split.micro_batch,
        dtype=entry.dtype,
        recompute=split.recompute,
        optimizer=question.optimizer,
        uptime=question.uptime,
        price_per_gpu_hour=offer.price_per_gpu_hour,
        **keys,
    )
