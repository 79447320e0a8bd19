"""Every replica that a question allows (splits, number formats, machines), and why others are ruled
out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from simulator.base.errors import UserError
from simulator.base.frozen import Policy, validate
from simulator.base.kinds import PolicyOf
from simulator.base.plugins import build
from simulator.base.text import inline_toml
from simulator.config.capacity import CandidateModel, Question
from simulator.config.deployment import DeploymentSpec, ParallelSpec
from simulator.config.model import ModelSpec
from simulator.config.pairing import model_text
from simulator.config.sparsity import Pruning, pruning_text
from simulator.deployment.counterparts import choose_model
from simulator.deployment.memory import NoRoomError
from simulator.deployment.plan import DeploymentPlan, find_keys_of, make_plan
from simulator.planner.loss_probability import count_spare_replicas, share_of_time_serving
from simulator.planner.machines import WHERE, Machines, machines_of
from simulator.work.layout import uneven_heads
from simulator.workload.traces import RequestTrace

ALIKE = "attention data parallelism of a dense model is the same as more replicas"
HEADS = "tensor parallelism does not divide the model's attention heads"
LEAVES_NODE = "tensor parallelism would leave the node"
PART_OF_A_NODE = "a replica over several nodes must fill them"
STAGES = "a pipeline has more stages than the model has layers"
STAGES_BESIDE_DP = "pipelines are tried without attention data parallelism only"
STAGES_OVER_NODES = "pipelines over several nodes are tried with stages that fill them"
STAGES_IN_A_NODE = "pipelines on fast links are tried where tensor parallelism can go no further"
TOO_LARGE = "a replica would be larger than the limits allow"
MEMORY = "weights, activations and a cache do not fit in memory"
NO_CACHE = "the cache has no room for the longest request"
REFUSES = "its engine refuses prompts that are longer than a step and not cut into chunks"
TOO_SLOW = "misses a latency target even when nothing else runs"
TOO_FEW = "needs more GPUs than the limits allow"
NO_SPARES = "has no room for its spare replicas"
OTHER_PROMPTS = "misses a target with its prompts whole instead of in chunks, or the reverse"
_OTHER = ""
_TELLING = (
    *(NO_SPARES, TOO_FEW, TOO_SLOW, REFUSES, NO_CACHE, MEMORY, TOO_LARGE, _OTHER),
    *(HEADS, LEAVES_NODE, PART_OF_A_NODE, ALIKE),
    *(STAGES, STAGES_BESIDE_DP, STAGES_OVER_NODES, STAGES_IN_A_NODE),
)
"""Reasons by how far a deployment came before it was ruled out: the furthest is what keeps a model
from doing the job. Those behind all others are of a split, and say nothing of whether the model
could do the job with another one."""


@dataclass
class Ruled:
    """Why combinations were left out: how many for each reason, and one of them."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, example: str, count: int = 1) -> None:
        """Leave some out."""
        if not count:
            return
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, example)

    def add(self, other: Ruled) -> None:
        """Leave out what another one has left out."""
        for reason, count in other.counts.items():
            self.leave_out(reason, other.examples[reason], count)

    def telling(self) -> str | None:
        """The reason that says most about why nothing can be run; ``None`` where nothing was left
        out.
        """

        def rank(reason: str) -> tuple[int, int]:
            known = reason if reason in _TELLING else _OTHER
            return _TELLING.index(known), -self.counts[reason]

        return min(self.counts, key=rank, default=None)


def reason_of(message: str) -> str:
    """The kind of an error, without its numbers."""
    if "does not fit" in message:
        return MEMORY
    return message.split("]: ", 1)[-1].split(";", maxsplit=1)[0]


class ModelVariant(NamedTuple):
    """One of the question's models, whole or pruned, with some values of ``space.keys``."""

    number: int
    """Index into the question's models."""
    entry: CandidateModel
    pruning: Pruning | None
    quality: float | None
    keys: Mapping[str, object]
    """Values by dotted key."""

    @property
    def table(self) -> dict[str, Any]:
        """Keys of a deployment that the search does not decide."""
        found = copy.deepcopy(self.entry.deployment)
        for key, value in self.keys.items():
            *outer, last = key.split(".")
            inner = found
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = copy.deepcopy(value)
        return found


class ReplicaShape(NamedTuple):
    """One replica of a deployment."""

    model: int
    """Index into the space's models."""
    machines: int
    """Index into the space's machines."""
    tp: int
    attention_dp: int
    ep: int
    weight_dtype: str
    """Empty = as the model is released, experts perhaps in another format than the rest."""
    kv_dtype: str
    slots: int
    """Expert slots in all; 0 = one an expert, in order."""
    overlap: str
    pp: int = 1
    dispatch_dtype: str = ""
    """Empty = as engines do with the weights' format, or nothing travels."""
    placement: str = "contiguous"
    """Placement of experts without copies."""
    max_sequences: int = 0
    """Sequences at once of a data-parallel rank; 0 = as many as the engine starts with."""
    prompts: str = ""
    """``"chunked"`` to fill steps, or ``"whole"``; empty = as the engine's release does."""
    memory_fraction: float = 0.0
    """Share of the memory, where the engine's own leaves no room; 0 = its own."""

    @property
    def num_ranks(self) -> int:
        """GPUs of a replica."""
        return self.tp * self.attention_dp * self.pp

    @property
    def kernels(self) -> ReplicaShape:
        """The shape whose blocks of a step take as long: without what changes the cache, the
        batches and their way through the layers.
        """
        return self._replace(
            kv_dtype="", overlap="", pp=1, max_sequences=0, prompts="", memory_fraction=0.0
        )


Sides = tuple[ReplicaShape, ReplicaShape | None]
"""Shape of a deployment's replicas, and of those that compute prompts where these are a pool."""


class Space:
    """All shapes of a question, and how each becomes a deployment."""

    def __init__(self, question: Question, folder: Path) -> None:
        """Load what the question names.

        Raises:
            UserError: if a name is unknown, or a cluster has neither price nor size.
        """
        self.question = question
        self.folder = folder
        keys = question.space.keys
        self.variants = [
            variant
            for values in product(*keys.values())
            for variant in _list_variants(question, dict(zip(keys, values, strict=True)))
        ]
        self.models = [
            _name_pruned(choose_model(one.entry, f"{WHERE} [models]", folder), one.pruning)
            for one in self.variants
        ]
        self.machines = [machines_of(offer, question) for offer in question.clusters]

    def shapes(
        self, model: int, machines: int, ruled: Ruled
    ) -> Iterator[tuple[ReplicaShape, DeploymentPlan]]:
        """Every possible shape of a model on some machines with the plan of one replica; the
        others are told to ``ruled``.
        """
        if (reason := self._check_quality(self.variants[model])) is not None:
            ruled.leave_out(reason, self.models[model].name)
            return
        for shape in self._list_shapes(model, self.variants[model].entry, machines, ruled):
            try:
                found = self._fit(shape)
            except UserError as error:
                ruled.leave_out(reason_of(str(error)), self.text(shape))
                continue
            yield found

    def _fit(self, shape: ReplicaShape) -> tuple[ReplicaShape, DeploymentPlan]:
        """A shape with the plan of one replica, of more memory where the engine's share leaves no
        room and more does.
        """
        try:
            return shape, self.plan(shape)
        except NoRoomError as error:
            if error.larger_share is None:
                raise
            return self._fit(shape._replace(memory_fraction=error.larger_share))

    def find_smallest(self, model: int, tokens: int) -> ReplicaShape:
        """The shape of fewest GPUs, on the first machines, that holds a model and a request of so
        many tokens: of several the one with least of what it can do without.

        Raises:
            UserError: if there is none, with the reason.
        """
        ruled = Ruled()
        for shape in sorted(
            self._list_shapes(model, self.variants[model].entry, 0, ruled),
            key=lambda one: (one.num_ranks, one.pp, one.attention_dp, one.ep, one.slots),
        ):
            try:
                found, plan = self._fit(shape)
            except UserError as error:
                ruled.leave_out(reason_of(str(error)), self.text(shape))
                continue
            if plan.serving.capacity.tokens >= tokens:
                return found
            ruled.leave_out(NO_CACHE, self.text(shape))
        where = f"{self.models[model].name} on {self.machines[0].offer.cluster}"
        raise UserError(
            f"{where}: {ruled.telling()}; name machines with more memory (moesim list clusters)"
        )

    def machines_at(self, shape: ReplicaShape) -> Machines:
        """The machines that a shape is on."""
        return self.machines[shape.machines]

    def kind(self, shape: ReplicaShape) -> str:
        """Kind of a shape's model, for people: ``MoE``, ``dense`` or ``pruned``."""
        if self.variants[shape.model].pruning is not None:
            return "pruned"
        return "dense" if self.models[shape.model].moe is None else "MoE"

    def num_splits(self, number: int) -> int:
        """Number of a model's splits before any was ruled out: tensor and data parallelism and
        formats.
        """
        space, one = self.question.space, self.variants[number].entry
        return (
            len(space.tp)
            * len(space.attention_dp)
            * len(one.weight_dtypes or ("",))
            * len(one.kv_dtypes or ("bf16",))
        )

    def _check_quality(self, variant: ModelVariant) -> str | None:
        least = self.question.limits.min_quality
        if least is None:
            return None
        if variant.quality is None:
            return f"it has no quality score, which limits.min_quality = {least:g} asks for"
        is_poor = variant.quality < least
        return f"its quality score is below limits.min_quality = {least:g}" if is_poor else None

    def host_gpus(self, shape: ReplicaShape, prefill: ReplicaShape | None = None) -> int:
        """GPUs that are lost with one node.

        Where nodes may be lost and the market rents parts of one that are as large as a replica,
        every replica is on a node of its own; pools stay in whole nodes, since they move caches to
        each other.
        """
        machines = self.machines_at(shape)
        per_node = machines.spec.gpus_per_node
        is_part = shape.num_ranks < per_node and shape.num_ranks in machines.sizes
        alone = self.question.spare.nodes and prefill is None and is_part
        return shape.num_ranks if alone else per_node

    def spare_gpus(self, shape: ReplicaShape, prefill: ReplicaShape | None = None) -> int:
        """GPUs that are held free, so that what may be lost can be: see
        :class:`~simulator.config.capacity.Spare`.
        """
        spare, per_node = self.question.spare, self.machines_at(shape).spec.gpus_per_node
        largest = max(shape.num_ranks, prefill.num_ranks if prefill is not None else 0)
        return spare.nodes * self.host_gpus(shape, prefill) + spare.gpus * min(largest, per_node)

    def count_spares(self, shape: ReplicaShape, replicas: int, in_pools: bool = False) -> int:
        """Spare replicas beside so many, for ``failures.availability``.

        Args:
            in_pools: whether there is another pool, which fails as well: both serve for the product
                of their shares of the time, so that each has to for the root.
        """
        rates = self.question.failures
        if rates.availability is None or not replicas:
            return 0
        share = math.sqrt(rates.availability) if in_pools else rates.availability
        node_gpus = self.host_gpus(shape)
        return count_spare_replicas(replicas, shape.num_ranks, node_gpus, share, rates)

    def count_replicas(self, size: int, shape: ReplicaShape) -> int:
        """Replicas that serve on a cluster when what may be lost is lost, and the spare ones are
        out of work.
        """
        return self._count_serving(shape, (size - self.spare_gpus(shape)) // shape.num_ranks)

    def _count_serving(self, shape: ReplicaShape, most: int, in_pools: bool = False) -> int:
        """Replicas that serve, of ``most`` with the spare ones."""
        counts = range(max(0, most), -1, -1)
        return next(n for n in counts if n + self.count_spares(shape, n, in_pools) <= max(0, most))

    def list_fills(
        self, size: int, shape: ReplicaShape, prefill: ReplicaShape | None = None
    ) -> list[tuple[int, int]]:
        """Replicas, and prefill replicas, that fill a cluster when what may be lost is lost and the
        spare ones are out of work: from fewest prefill replicas to most.
        """
        if prefill is None:
            replicas = self.count_replicas(size, shape)
            return [(replicas, 0)] if replicas else []
        room, found = size - self.spare_gpus(shape, prefill), dict[int, int]()
        for prompts in range(1, room // prefill.num_ranks + 1):
            taken = prompts + self.count_spares(prefill, prompts, in_pools=True)
            most = (room - taken * prefill.num_ranks) // shape.num_ranks
            replicas = self._count_serving(shape, most, in_pools=True)
            if replicas:
                found[replicas] = prompts
        return list(found.items())

    def find_cluster(self, sides: Sides, counts: tuple[int, int]) -> int | None:
        """The smallest cluster with so many replicas, and prefill replicas, left when what may be
        lost is lost, and the spare ones are out of work.
        """
        num_gpus = self.count_gpus(sides, counts)
        return next((size for size in self.sizes(*sides) if size >= num_gpus), None)

    def count_gpus(self, sides: Sides, counts: tuple[int, int]) -> int:
        """GPUs of so many replicas, of the spare ones and of what may be lost."""
        spares = count_spares(self, sides, *counts)
        return self.spare_gpus(*sides) + sum(
            (count + spare) * one.num_ranks
            for one, count, spare in zip(sides, counts, spares, strict=True)
            if one is not None
        )

    def sizes(self, shape: ReplicaShape, prefill: ReplicaShape | None = None) -> tuple[int, ...]:
        """Sizes of the cluster within the limit on nodes, of which there are more where every
        replica is on one of its own.
        """
        sizes, most = self.machines_at(shape).sizes, self.question.limits.nodes
        host_gpus = self.host_gpus(shape, prefill)
        return tuple(size for size in sizes if most is None or -(-size // host_gpus) <= most)

    def list_filled_sizes(
        self, shape: ReplicaShape, prefill: ReplicaShape | None = None
    ) -> tuple[int, ...]:
        """Sizes of the cluster that at least one replica is left on, and one of each pool."""
        sizes = self.sizes(shape, prefill)
        return tuple(size for size in sizes if self.list_fills(size, shape, prefill))

    def _list_shapes(
        self, number: int, one: CandidateModel, place: int, ruled: Ruled
    ) -> Iterator[ReplicaShape]:
        space, model, machines = self.question.space, self.models[number], self.machines[place]
        weights = one.weight_dtypes or ("",)
        caches = one.kv_dtypes or ("bf16",)
        if machines.beyond:
            ruled.leave_out(machines.beyond, model.name, self.num_splits(number))
            return
        for tp, dp in product(space.tp, space.attention_dp):
            split = f"{model.name}, TP {tp} x attention DP {dp} on {machines.offer.cluster}"
            reason = self._check_split(model, machines, tp, dp)
            if reason is not None:
                ruled.leave_out(reason, split, len(weights) * len(caches))
                continue
            eps = self._list_ep_sizes(model, tp * dp)
            for pp in space.pp:
                reason = self._check_pipeline(model, machines, tp, dp, pp)
                if reason is not None:
                    ruled.leave_out(
                        reason, f"{split}, PP {pp}", len(weights) * len(caches) * len(eps)
                    )
                    continue
                for ep, weight, cache, most in product(
                    eps, weights, caches, space.max_sequences or (0,)
                ):
                    travels = ep > 1 and dp > 1
                    overlaps = space.overlap if travels else ("none",)
                    sent = one.dispatch_dtypes or ("",) if travels else ("",)
                    for (slots, placement), overlap, dispatch in product(
                        self._list_placements(model, ep), overlaps, sent
                    ):
                        first = (number, place, tp, dp, ep, weight, cache, slots)
                        yield ReplicaShape(*first, overlap, pp, dispatch, placement, most)

    def _check_split(self, model: ModelSpec, machines: Machines, tp: int, dp: int) -> str | None:
        per_node = machines.spec.gpus_per_node
        if model.moe is None and dp > 1:
            return ALIKE
        if uneven_heads(model, tp) is not None:
            return HEADS
        if tp > per_node:
            return LEAVES_NODE
        if tp * dp > min(self.question.space.max_gpus_per_replica, machines.sizes[-1]):
            return TOO_LARGE
        if tp * dp > per_node and tp * dp % per_node:
            return PART_OF_A_NODE
        return None

    def _check_pipeline(
        self, model: ModelSpec, machines: Machines, tp: int, dp: int, pp: int
    ) -> str | None:
        """Why a split that is possible has no stages; ``None`` where it has."""
        if pp == 1:
            return None
        per_node = machines.spec.gpus_per_node
        most = min(self.question.space.max_gpus_per_replica, machines.sizes[-1])
        if dp > 1:
            return STAGES_BESIDE_DP
        if pp > model.num_layers:
            return STAGES
        if tp * pp > most:
            return TOO_LARGE
        if tp * pp > per_node:
            return None if tp == per_node else STAGES_OVER_NODES
        further = [
            size
            for size in self.question.space.tp
            if tp < size <= per_node and uneven_heads(model, size) is None
        ]
        return STAGES_IN_A_NODE if further and machines.spec.topology["kind"] != "pcie" else None

    def _list_ep_sizes(self, model: ModelSpec, num_ranks: int) -> list[int]:
        if model.moe is None:
            return [1]
        wanted = self.question.space.ep or ("off", "all")
        found = [1] if "off" in wanted else []
        if "all" in wanted and 1 < num_ranks <= model.moe.num_experts:
            found.append(num_ranks)
        return found

    def _list_placements(self, model: ModelSpec, ep: int) -> list[tuple[int, str]]:
        """Slots for experts, which loads fill; or 0 and where the experts are, one a slot."""
        if model.moe is None or ep == 1:
            return [(0, "contiguous")]
        found: list[tuple[int, str]] = []
        for share in self.question.space.redundant_experts:
            slots = -(-round(model.moe.num_experts * (1 + share)) // ep) * ep if share else 0
            placements = ("contiguous",) if slots else self.question.space.placements
            found += [(slots, placement) for placement in placements]
        return list(dict.fromkeys(found))

    def spec(
        self,
        shape: ReplicaShape,
        budget: int | None = None,
        replicas: int = 1,
        size: int | None = None,
        name: str = "",
    ) -> DeploymentSpec:
        """The deployment of some replicas of a shape.

        Args:
            budget: tokens of a step; absent = the largest that the question allows.
            size: GPUs of the cluster; absent = the smallest that holds them.
        """
        one, machines = self.variants[shape.model].entry, self.machines_at(shape)
        held = size or machines.holding(replicas * shape.num_ranks)
        if held is None:
            raise UserError(
                f"{WHERE}: {replicas * shape.num_ranks} GPUs are more than the limits allow"
            )
        own = self.variants[shape.model].table
        chosen = choose_scheduling(shape, budget or max(self.question.space.token_budgets))
        table = {
            "name": name or self.text(shape),
            "model": one.model,
            "dense_of": one.dense_of,
            "moe_of": one.moe_of,
            "cluster": machines.name_size(held),
            "parallel": ParallelSpec(
                tp=shape.tp,
                attention_dp=shape.attention_dp,
                ep=shape.ep if shape.ep > 1 else None,
                pp=shape.pp,
            ),
            "engine": one.engine,
            "replicas": replicas,
            "weight_dtype": shape.weight_dtype or None,
            "kv_dtype": shape.kv_dtype,
            "dispatch_dtype": shape.dispatch_dtype or None,
            "routing": one.routing,
            "placement": {"kind": "eplb", "num_slots": shape.slots}
            if shape.slots
            else {"kind": shape.placement},
            "overlap": shape.overlap,
            "network_speed": machines.offer.network_speed,
            "price_per_gpu_hour": machines.offer.price_per_gpu_hour,
            "memory_fraction": shape.memory_fraction or None,
            "pruning": self.variants[shape.model].pruning,
            **own,
            "scheduling": {**own.get("scheduling", {}), **chosen},
        }
        return validate(DeploymentSpec, table, f"{WHERE} [models] deployment")

    def plan(self, shape: ReplicaShape, budget: int | None = None) -> DeploymentPlan:
        """The plan of one replica of a shape, with the tokens of a step as of :meth:`spec`."""
        return make_plan(self.spec(shape, budget), self.question.seed, WHERE, self.folder)

    def text(self, shape: ReplicaShape) -> str:
        """A shape in words, for tables."""
        machines = self.machines_at(shape)
        parts = [self.name_model(shape)]
        if shape.kv_dtype != "bf16":
            parts.append(f"{shape.kv_dtype} cache")
        if shape.dispatch_dtype:
            parts.append(f"sends {shape.dispatch_dtype}")
        if len(self.question.space.max_sequences or ()) > 1:
            parts.append(f"{shape.max_sequences} sequences")
        return f"{', '.join(parts)}, {self.split(shape)} on {machines.offer.cluster}"

    def name_model(self, shape: ReplicaShape) -> str:
        """The model and the format of its weights."""
        model = self.models[shape.model]
        released = model.expert_dtype or model.weight_dtype
        entry = self.variants[shape.model].entry
        alike = [one for one in self.question.models if model_text(one) == model_text(entry)]
        engines = {one.engine for one in alike}
        named = f" in {entry.engine}" if len(engines) > 1 else ""
        if any(one.deployment != entry.deployment for one in alike):
            named += "".join(f", {key}" for key in inline_keys(entry.deployment))
        named += "".join(f", {key}" for key in inline_keys(self.variants[shape.model].keys))
        return f"{model.name} {shape.weight_dtype or released}{named}"

    def split(self, shape: ReplicaShape) -> str:
        """The split of a replica, in words."""
        model = self.models[shape.model]
        split = [f"TP {shape.tp}"] if shape.tp > 1 or shape.attention_dp == 1 else []
        if shape.attention_dp > 1:
            split.append(f"attention DP {shape.attention_dp}")
        if shape.ep > 1:
            split.append(f"EP {shape.ep}")
        if shape.pp > 1:
            split.append(f"PP {shape.pp}")
        if shape.slots and model.moe is not None:
            split.append(f"{shape.slots - model.moe.num_experts} spare experts")
        elif shape.placement != "contiguous":
            split.append("experts placed by load")
        if shape.overlap != "none":
            split.append("overlap")
        if shape.prompts:
            split.append("chunked prefill" if shape.prompts == "chunked" else "whole prompts")
        if shape.memory_fraction:
            split.append(f"memory fraction {shape.memory_fraction:g}")
        return ", ".join(split)


def check_variants(space: Space, trace: RequestTrace, file: str = WHERE) -> None:
    """Refuse keys and policies that no deployment has, and an order that the requests lack what it
    needs for, before any is tried.

    Args:
        file: of the question, for errors.

    Raises:
        UserError: with the key, and what would be right.
    """
    hints = get_type_hints(DeploymentSpec, include_extras=True)
    for variant in space.variants:
        count, table = len(space.question.models), variant.table
        where = f"{file} [models entry {variant.number + 1} of {count}] [deployment]"
        if variant.keys:
            where += " with [space.keys]"
        named = {"name": "any", "model": "any", "cluster": "any"}
        validate(DeploymentSpec, named | table, where)
        for key, value in table.items():
            for family in _list_families(hints[key]):
                for policy in value if isinstance(value, list | tuple) else [value]:
                    built = build(family, policy, f"{where} [{key}]")
                    if family == "order":
                        find_keys_of(built, trace, f"{where} [order]")


def _list_families(hint: Any) -> Iterator[str]:
    """The families of whole policies that a key holds."""
    for part in get_args(hint):
        if not isinstance(part, PolicyOf):
            yield from _list_families(part)
        elif not part.is_partial:
            yield part.family


def inline_keys(table: Mapping[str, object]) -> list[str]:
    """The keys of a table as TOML, one by one.

    >>> inline_keys({"usage": "offline"})
    ['usage = "offline"']
    """
    return [f"{key} = {inline_toml(value)}" for key, value in table.items()]


def _list_variants(question: Question, keys: Mapping[str, object]) -> list[ModelVariant]:
    """Every model with some values of ``space.keys``, the whole ones first."""
    numbered = list(enumerate(question.models))
    whole = [ModelVariant(n, one, None, one.quality, keys) for n, one in numbered]
    return whole + [
        ModelVariant(n, one, each, one.pruned_quality, keys)
        for n, one in numbered
        for each in one.prunings
    ]


def choose_scheduling(shape: ReplicaShape, budget: int) -> Policy:
    """Keys in which a shape's batching differs from its engine's own."""
    changes: Policy = {"token_budget": budget}
    if shape.max_sequences:
        changes["max_sequences"] = shape.max_sequences
    if shape.prompts:
        changes["chunked_prompts"] = shape.prompts == "chunked"
    return changes


def _name_pruned(model: ModelSpec, pruning: Pruning | None) -> ModelSpec:
    if pruning is None:
        return model
    return model.model_copy(update={"name": f"{model.name} ({pruning_text(pruning)})"})


class Spares(NamedTuple):
    """Spare replicas of each pool."""

    replicas: int = 0
    prefill_replicas: int = 0


def count_spares(space: Space, sides: Sides, replicas: int, prefill_replicas: int = 0) -> Spares:
    """Count the spare replicas beside those that keep the targets; none without
    ``failures.availability``.
    """
    (shape, prompts), in_pools = sides, sides[1] is not None
    return Spares(
        space.count_spares(shape, replicas, in_pools),
        0 if prompts is None else space.count_spares(prompts, prefill_replicas, in_pools),
    )


def share_of_time_enough(
    space: Space, sides: Sides, counts: tuple[int, int], spares: Spares
) -> tuple[float, float]:
    """Share of the time in which as many replicas of each pool serve as keep the targets, at the
    lowest and the highest ``mtbf_gpu_hours``.

    Args:
        counts: replicas that keep the targets, and prefill replicas.
    """
    low = high = 1.0
    for shape, count, spare in zip(sides, counts, spares, strict=True):
        if shape is not None:
            sizes = shape.num_ranks, space.host_gpus(shape)
            own = share_of_time_serving(count, spare, *sizes, space.question.failures)
            low, high = low * own[0], high * own[1]
    return low, high


def explain_no_room(space: Space, shape: ReplicaShape, replicas: int) -> str | None:
    """Say why there is no room for the spare replicas beside so many, and what would do; ``None``
    where there is none for these alone.
    """
    failures, largest = space.question.failures, max(space.sizes(shape), default=0)
    room = max(0, largest - space.spare_gpus(shape)) // shape.num_ranks
    if room < replicas or failures.availability is None:
        return None
    wanted = replicas + space.count_spares(shape, replicas)
    sizes = shape.num_ranks, space.host_gpus(shape)
    reached, _ = share_of_time_serving(replicas, room - replicas, *sizes, failures)
    size = f"{shape.num_ranks:,} GPU{'' if shape.num_ranks == 1 else 's'}"
    needed = f"{replicas:,} that {'serves' if replicas == 1 else 'serve'}"
    return (
        f"availability = {failures.availability:g} takes {wanted:,} replicas of {size} for "
        f"{needed}, and the limits allow {room:,}, with which it is {reached:.6g}: "
        "ask for no more, raise the limits, or lower repair_hours"
    )
