"""Search for the cheapest split that trains a model in so many days.

For each model, kind of machine and number of GPUs all splits are ranked by their estimated steps;
the fastest few that fit in memory are simulated. Splits of one number of GPUs cost by the day, so
the fastest is the cheapest; numbers of GPUs are compared by what the whole training costs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import Any, Literal, NamedTuple

from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.progress import Progress
from simulator.config.cluster import ClusterSpec, load_kind
from simulator.config.model import LayerRun, ModelSpec
from simulator.config.training import TrainingDeployment, TrainingParallel
from simulator.config.training_question import TrainedModel, TrainingCluster, TrainingQuestion
from simulator.deployment.counterparts import choose_model
from simulator.deployment.training.memory import (
    TrainingMemory,
    find_room,
    measure_memory,
)
from simulator.deployment.training.plan import TrainingPlan, make_training_plan, plan_model
from simulator.deployment.training.quality import TokensToLoss, find_tokens_to_loss
from simulator.engine.training import TrainingStep, find_band, run_training_step
from simulator.policies.pipelining import PassKind
from simulator.step.program import Busy, Together
from simulator.step.training import find_rank_imbalance, price_micro_batch, price_update
from simulator.work.layout import Layout, uneven_heads
from simulator.work.trained import Chunk, count_parameters

_PASSES: tuple[PassKind, ...] = ("forward", "backward")
_LAYERED_KEYS = ("persistence", "repetition")
"""Keys of routing policies that may name layers."""
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
    changes = {"layers": (LayerRun(pattern=pattern),), "routing": _drop_layers(model.routing)}
    return ModelSpec.model_construct(**(fields | changes))


def _drop_layers(routing: Policy | None) -> Policy | None:
    """Leave out what routing says layer by layer, of layers that a shortened model lacks: how alike
    neighbouring tokens are routed, which the seconds of a layer do not depend on.
    """
    if routing is None or not any(isinstance(routing.get(key), Mapping) for key in _LAYERED_KEYS):
        return routing
    return {key: value for key, value in routing.items() if key not in _LAYERED_KEYS}


def time_layers(plan: TrainingPlan, model: ModelSpec) -> LayerTimes:
    """Time all layers of a model by those of its shortened one, every exchange with links of its
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
    """Estimate the seconds of a step analytically; gradients and the optimizer are left out.

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
    most, found = min(cluster.gpus_per_node, num_gpus), list[Split]()
    for tp in (1 << n for n in range(most.bit_length())):
        if uneven_heads(model, tp) is not None or num_gpus % tp:
            continue
        for pp in _list_divisors(num_gpus // tp, min(_MOST_STAGES, model.num_layers)):
            for ep in _list_groups(model, tp, num_gpus // pp):
                found += _yield_batches(model, Split(num_gpus, tp, pp, ep, 1, 1, "none"), batch)
    return found


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


class Pair(NamedTuple):
    """One of the question's models on one of its kinds of machines."""

    entry: TrainedModel
    offer: TrainingCluster
    model: ModelSpec


def describe_split(question: TrainingQuestion, pair: Pair, split: Split) -> TrainingDeployment:
    """Describe a split as a deployment that ``moesim run`` takes."""
    entry, offer, _ = pair
    keys: dict[str, Any] = {
        key: value
        for key in ("model", "dense_of", "moe_of", "routing")
        if (value := getattr(entry, key))
    }
    kind = "interleaved" if split.chunks > 1 else "one_f_one_b"
    return TrainingDeployment(
        name=entry.title,
        cluster=offer.cluster,
        num_gpus=split.num_gpus,
        parallel=TrainingParallel(tp=split.tp, pp=split.pp, ep=split.ep if split.ep > 1 else None),
        pipelining={"kind": kind} | ({"chunks": split.chunks} if split.chunks > 1 else {}),
        micro_batch=split.micro_batch,
        dtype=entry.dtype,
        recompute=split.recompute,
        optimizer=question.optimizer,
        uptime=question.uptime,
        price_per_gpu_hour=offer.price_per_gpu_hour,
        **keys,
    )


_SEARCHING = "models and numbers of GPUs"
_SHORTLISTED = 24
"""Splits of a model on a number of GPUs that are ranked with their gradients."""
_SIMULATED = 3
"""Splits of a model on a number of GPUs that are simulated, the first ones that fit."""
_DAY_S = 86_400.0
_BEHIND = "ranked behind other splits of as many GPUs"
_AGAIN = "computes more again than it must"
_TOO_LARGE = "activations do not fit beside the rest"


class Trained(NamedTuple):
    """A simulated split."""

    deployment: TrainingDeployment
    plan: TrainingPlan
    step: TrainingStep
    memory: TrainingMemory
    days: float
    cost: float
    band: tuple[float, float]
    """Factors of the 80 % band of days and cost."""
    tokens: float
    target: TokensToLoss | None
    """Loss that it trains to; ``None`` where all train on as many tokens."""


class Found(NamedTuple):
    """Result of a search."""

    trained: list[Trained]
    """Simulated splits, the cheapest first."""
    ruled_out: Counter[str]
    """Splits that were considered and not simulated, by reason."""
    absent: dict[str, str]
    """Models of which no split was simulated, each with the reason."""


class TrainingSearch:
    """Search over models, machines, numbers of GPUs and splits."""

    def __init__(self, question: TrainingQuestion, progress: Progress) -> None:
        self._question = question
        self._progress = progress
        self._times: dict[tuple[object, ...], LayerTimes] = {}
        self.ruled_out: Counter[str] = Counter()
        """Splits that were considered and not simulated so far, by reason."""

    def run(self) -> Found:
        """Search for the cheapest ways to train each of the question's models.

        Raises:
            UserError: if a name is wrong, or no split of any model fits.
        """
        question = self._question
        models = [choose_model(one, question.where, question.folder) for one in question.models]
        entries = list(zip(question.models, models, strict=True))
        places = [
            (Pair(entry, offer, model), size)
            for entry, model in entries
            for offer in question.clusters
            for size in list_sizes(offer, question.where)
        ]
        trained: list[Trained] = []
        for number, (pair, size) in enumerate(places):
            self._progress(_SEARCHING, number, len(places), self._tell_best(trained))
            trained += self.simulate_best(pair, size)
        self._progress(_SEARCHING, len(places), len(places), self._tell_best(trained))
        trained.sort(key=lambda one: (float(f"{one.cost:.6g}"), one.days))
        there = {one.deployment.name for one in trained}
        most = max(offer.max_gpus for offer in question.clusters)
        if not trained:
            raise UserError(
                f"{question.where}: none of the models fits on up to {most:,} GPUs with a batch of "
                f"{question.training.global_batch:,} sequences; raise max_gpus or global_batch"
            )
        absent = {
            entry.title: (
                f"fits on none of up to {most:,} GPUs"
                if math.isfinite(self._find_tokens(model))
                else "never has the loss that is asked for"
            )
            for entry, model in entries
            if entry.title not in there
        }
        return Found(trained, self.ruled_out, absent)

    def _tell_best(self, trained: list[Trained]) -> str:
        """Tell the cheapest training so far that keeps the target; empty where none does."""
        met = [one for one in trained if one.days <= self._question.targets.days]
        if not met:
            return ""
        best = min(met, key=lambda one: one.cost)
        return (
            f"{best.deployment.name} on {best.deployment.num_gpus:,} GPUs, {best.days:,.1f} days, "
            f"{best.cost:,.0f} {best.plan.cluster.currency}"
        )

    def simulate_best(self, pair: Pair, size: int) -> list[Trained]:
        """Simulate the fastest splits of a model on a number of GPUs that fit."""
        question, model = self._question, pair.model
        if not math.isfinite(self._find_tokens(model)):
            return []
        cluster, accelerator = load_kind(pair.offer.cluster, question.where)
        splits = list_splits(model, cluster, size, question.training.global_batch)
        if not splits:
            self.ruled_out["a step has too few sequences for so many GPUs"] += 1
        fitting = [one for one in splits if find_least(model, one) < accelerator.memory_bytes]
        self.ruled_out["weights, gradients and optimizer do not fit"] += len(splits) - len(fitting)
        ranked = sorted(fitting, key=lambda one: self._estimate(pair, one))
        # The first ones that fit, each with those that only compute more again, the fastest first.
        shortlist: dict[Split, list[Split]] = {}
        for split in ranked:
            alike = split._replace(recompute="none")
            if alike in shortlist:
                shortlist[alike].append(split)
            elif len(shortlist) == _SHORTLISTED:
                self.ruled_out[_BEHIND] += 1
            elif _fits(self._plan(pair, split), split):
                shortlist[alike] = [split]
            else:
                self.ruled_out[_TOO_LARGE] += 1
        return self._simulate_first(pair, list(shortlist.values()))

    def _simulate_first(self, pair: Pair, shortlist: list[list[Split]]) -> list[Trained]:
        """Simulate the fastest of a shortlist, ranked anew with their gradients, which depend on
        all of a split.

        Args:
            shortlist: splits, each with those that only compute more again, the fastest first. What
                is computed again is the least that fits on the busiest rank too.
        """

        def rank(number: int) -> tuple[float, int, TrainingPlan]:
            split = shortlist[number][0]
            plan, estimated_s = self._plan(pair, split), self._estimate(pair, split)
            return estimated_s + self._estimate_update(pair, plan, split), number, plan

        found: list[Trained] = []
        queue = [rank(number) for number in range(len(shortlist))]
        heapify(queue)
        while queue and len(found) < _SIMULATED:
            _, number, plan = heappop(queue)
            shortlist[number].pop(0)
            one = self._simulate(plan)
            if one is not None:
                found.append(one)
                self.ruled_out[_AGAIN] += len(shortlist[number])
                continue
            self.ruled_out[_TOO_LARGE] += 1
            if shortlist[number]:
                heappush(queue, rank(number))
        self.ruled_out[_BEHIND] += sum(len(shortlist[number]) for _, number, _ in queue)
        return found

    def _plan(self, pair: Pair, split: Split) -> TrainingPlan:
        question = self._question
        spec = describe_split(question, pair, split)
        return make_training_plan(
            spec, question.training, question.seed, question.where, question.folder
        )

    def _estimate_update(self, pair: Pair, plan: TrainingPlan, split: Split) -> float:
        """Estimate the seconds that the first stage's gradients and weights add to a step, beneath
        a third and two thirds of a micro-batch.
        """
        times, update = self._times[_key_times(pair, split)], price_update(plan, 0)
        stage_s = times.layers_s / split.pp
        return (
            max(0.0, update.reduce_s - 2 / 3 * stage_s)
            + max(0.0, update.gather_s - stage_s / 3 / split.chunks)
            + update.optimizer_s
        )

    def _estimate(self, pair: Pair, split: Split) -> float:
        question, key = self._question, _key_times(pair, split)
        if key not in self._times:
            alone = split._replace(pp=1, chunks=1, num_gpus=max(split.tp, split.ep))
            spec = describe_split(question, pair, alone)
            spec = spec.model_copy(update={"routing": _drop_layers(spec.routing)})
            batch = split.micro_batch * alone.num_gpus // split.tp
            one = question.training.model_copy(update={"global_batch": batch})
            place = f"{question.where} [models '{pair.entry.title}']"
            short = shorten_model(pair.model)
            plan = plan_model(spec, short, one, question.seed, place, question.folder)
            self._times[key] = time_layers(plan, pair.model)
        return estimate_step(self._times[key], split, question.training.global_batch)

    def _simulate(self, plan: TrainingPlan) -> Trained | None:
        """Simulate a plan; ``None`` where the busiest rank's activations do not fit."""
        question, spec, room = self._question, plan.spec, find_room(plan)
        prices = price_micro_batch(plan)
        memory = measure_memory(plan, find_rank_imbalance(prices))
        if memory.total_bytes > room:
            return None
        step = run_training_step(plan, prices)
        tokens = self._find_tokens(plan.model)
        step_tokens = question.training.sequence_tokens * question.training.global_batch
        days = tokens / step_tokens * step.step_s / _DAY_S / question.uptime
        price = plan.cluster.price_per_gpu_hour
        assert price is not None, "prices are looked up when the question is read"
        cost = days * 24.0 * spec.num_gpus * price
        band = find_band(plan, step)
        return Trained(
            spec, plan, step, memory, days, cost, band, tokens, self._find_target(plan.model)
        )

    def _find_tokens(self, model: ModelSpec) -> float:
        """Find the tokens that a model trains on: all, or those to the loss that is asked for."""
        total, target = self._question.training.total_tokens, self._find_target(model)
        assert total is not None, "a question names its tokens"
        return total if target is None else target.tokens

    def _find_target(self, model: ModelSpec) -> TokensToLoss | None:
        """Find the loss that a model trains to; ``None`` where all train on as many tokens."""
        question = self._question
        total, quality = question.training.total_tokens, question.training.quality
        if quality is None or total is None:
            return None
        entry = next(one for one in question.models if one.title == quality.as_good_as)
        reference = choose_model(entry, question.where, question.folder)
        return find_tokens_to_loss(model, reference, total, quality.law, question.where)


def _key_times(pair: Pair, split: Split) -> tuple[object, ...]:
    """Key of what a layer's seconds depend on."""
    names = pair.entry.title, pair.offer.cluster
    return (*names, split.tp, split.ep, split.micro_batch, split.recompute)


def _fits(plan: TrainingPlan, split: Split) -> bool:
    """Whether a plan fits with experts used evenly. Activations are most before the first backward
    passes, so a few micro-batches tell.
    """
    few = min(split.pp * split.chunks * 2, plan.num_micro_batches)
    return measure_memory(replace(plan, num_micro_batches=few)).total_bytes <= find_room(plan)
