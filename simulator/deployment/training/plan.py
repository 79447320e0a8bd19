"""Plan of a training deployment: micro-batches, chunks of layers, groups, assumptions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from simulator.base.errors import UserError
from simulator.base.findings import Finding
from simulator.base.frozen import Policy
from simulator.base.plugins import build
from simulator.base.quantities import MOST_LAYERS
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.cluster import ClusterSpec, load_kind
from simulator.config.deployment import DeploymentSpec, ParallelSpec
from simulator.config.host import HostCalibration, HostRates, load_any_calibration
from simulator.config.model import ModelSpec, routing_note
from simulator.config.training import TrainingDeployment, TrainingParallel, TrainingSpec
from simulator.cost.comm import CommModel, CommPolicy
from simulator.cost.stages import Sends, make_sends
from simulator.deployment.counterparts import choose_model
from simulator.deployment.expert_plan import plan_experts
from simulator.deployment.placement import Placement, choose_precision, wire_links
from simulator.deployment.training.quality import TokensToLoss
from simulator.policies.contracts import find_schedule_fault
from simulator.policies.pipelining import ChunkPlace, PipeliningPolicy, Turn
from simulator.policies.speculation import Drafts
from simulator.policies.topology import Fabric
from simulator.work.layout import Layout, make_layout, stage_layers
from simulator.work.trained import Chunk, count_parameters, cut_chunks


def list_training_notes(
    plan: TrainingPlan, target: TokensToLoss | None = None
) -> Iterator[Finding]:
    """Find what the simulated step of a deployment assumes.

    Args:
        target: loss that it trains to, where there is one.
    """
    spec, model, experts = plan.spec, plan.model, plan.placement.experts
    name, rates, layout = plan.name, plan.placement.calibration, plan.placement.layout
    if isinstance(rates, HostRates):
        ratios, machine = rates.training.backward, rates.host.machine
        yield Finding("training_note.measured", plan=name, ratios=ratios, machine=machine)
    else:
        yield Finding("training_note.backward", ratio=spec.backward_ratio)
    if experts is not None and spec.routing is None:
        yield from routing_note(model.title or model.name, experts.routing_source)
        yield Finding("training_note.routing", plan=name)
    if spec.dtype in ("fp8", "fp8_block"):
        yield Finding("training_note.activations", plan=name, dtype=spec.dtype)
    if target is not None and target.outside:
        yield Finding("training_note.law", plan=name, outside=target.outside)
    if plan.placement.drops_pairs:
        yield Finding("training_note.drops", plan=name)
    if experts is not None and layout.ep > 1 and not layout.travels:
        yield Finding("training_note.same_tokens", plan=name, tp=layout.tp)


_TRAINED_HERE: dict[str, object] = {
    "dtype": "fp32",
    "dispatch_dtype": "fp32",
    "zero": 0,
    "recompute": "none",
    "overlap_gradients": False,
    "tp": 1,
    "cp": 1,
    "pp": 1,
}
"""Keys of a deployment whose shards train on processors."""
_VALUE_BYTES = 4.0
"""Bytes of a weight in single precision, which shards train in."""


def choose_host_rates(
    host: HostCalibration, spec: TrainingDeployment, model: ModelSpec, layout: Layout, place: str
) -> HostRates:
    """Choose the measured times of a deployment's ranks.

    Args:
        layout: block of ranks that share a micro-batch.
        place: of the deployment, for errors.

    Raises:
        UserError: if training was not timed, or not of the kind that the deployment asks for.
    """
    check_runs_here(spec, place)
    if spec.num_gpus > host.num_cores:
        raise UserError(
            f"{place}: num_gpus ({spec.num_gpus}) must be at most the {host.num_cores} cores of "
            f"'{host.machine}': trainings were timed with a core for each rank"
        )
    own = count_parameters(model, layout, Chunk(range(model.num_layers), True, True))
    num_bytes = _VALUE_BYTES * (own.dense + own.expert) * spec.num_gpus
    rates = host.choose_tables(spec.num_gpus, num_bytes)
    _ = rates.training
    return rates


def check_runs_here(spec: TrainingDeployment, place: str) -> None:
    """Refuse what shards on processors do not do in a training, and so is not timed there.

    Raises:
        UserError: naming the key, and the value that it must have.
    """
    asked = {**spec.model_dump(), **spec.parallel.model_dump()}
    for key, value in _TRAINED_HERE.items():
        if asked[key] != value:
            raise UserError(
                f"{place}: {key} = {json.dumps(asked[key])} can be simulated on accelerators, but "
                f"neither executed nor timed on processors; say {key} = {json.dumps(value)}"
            )


_ENGINE = "vllm"
"""Engine whose calibrated kernels are priced; those of large batches are cuBLAS's and
FlashAttention's, which trainings use as well."""


_COMPUTE: Policy = {"kind": "trained"}
"""Cost model of accelerators' kernels in training."""


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of one deployment: everything built, and every split found to divide."""

    spec: TrainingDeployment
    training: TrainingSpec
    placement: Placement
    """Block of ranks that share a micro-batch's layers in one stage, which prices are of."""
    policy: PipeliningPolicy
    places: tuple[ChunkPlace, ...]
    """Stage of each chunk, in the order of layers."""
    chunks: tuple[Chunk, ...]
    """Layers of each of ``places``."""
    num_micro_batches: int
    """Micro-batches of a step on each data-parallel rank."""
    sends: Mapping[tuple[int, int], Sends]
    """Transfers from one stage to another that has the chunk before or behind; empty on hosts."""
    ring: CommModel | None
    """Links of the ranks that share a sequence; ``None`` without context parallelism."""

    @property
    def name(self) -> str:
        """Name of the deployment."""
        return self.spec.name

    @property
    def model(self) -> ModelSpec:
        """Model that is trained."""
        return self.placement.model

    @property
    def cluster(self) -> ClusterSpec:
        """Machines."""
        return self.placement.cluster

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return self.spec.parallel.pp

    @property
    def stage_ranks(self) -> int:
        """GPUs of one stage."""
        return self.spec.num_gpus // self.num_stages

    @property
    def dp(self) -> int:
        """Data-parallel ranks: sequences that are computed side by side."""
        return self.stage_ranks // (self.spec.parallel.tp * self.spec.parallel.cp)

    @property
    def dense_group(self) -> int:
        """Ranks with the same dense parameters of a stage, which add up their gradients."""
        return self.stage_ranks // self.spec.parallel.tp

    @property
    def expert_group(self) -> int:
        """Ranks with the same routed experts of a stage, which add up their gradients."""
        return self.stage_ranks // self.placement.layout.num_ranks

    @property
    def rank_tokens(self) -> int:
        """Tokens of a micro-batch in each data- and context-parallel group."""
        return self.spec.micro_batch * self.training.sequence_tokens // self.spec.parallel.cp

    @cached_property
    def turns(self) -> tuple[tuple[Turn, ...], ...]:
        """Turns of each stage in one step."""
        return tuple(
            tuple(self.policy.list_turns(stage, self.num_stages, self.num_micro_batches))
            for stage in range(self.num_stages)
        )

    @cached_property
    def depth_of(self) -> dict[ChunkPlace, int]:
        """Place of each chunk in the order of layers."""
        return {place: depth for depth, place in enumerate(self.places)}

    def text(self) -> str:
        """Describe the split for people: ``DP 4 x TP 2 x PP 8, EP 4``."""
        parallel = self.spec.parallel
        sizes = {"DP": self.dp, "TP": parallel.tp, "CP": parallel.cp, "PP": parallel.pp}
        shown = [f"{name} {size}" for name, size in sizes.items() if size > 1 or name == "DP"]
        ep = f", EP {self.placement.layout.ep}" if self.placement.layout.ep > 1 else ""
        return " x ".join(shown) + ep


def make_training_plan(
    spec: TrainingDeployment, training: TrainingSpec, seed: int, where: str, folder: Path
) -> TrainingPlan:
    """Build and check everything that a training deployment names, its memory aside.

    Args:
        where: the scenario's file, for errors.
        folder: what paths in the deployment are relative to.

    Raises:
        UserError: if a name is unknown or a split is impossible, with what would do.
    """
    place = f"{where} [deployments '{spec.name}']"
    return plan_model(spec, choose_model(spec, place, folder), training, seed, place, folder)


def plan_model(
    spec: TrainingDeployment,
    model: ModelSpec,
    training: TrainingSpec,
    seed: int,
    place: str,
    folder: Path,
) -> TrainingPlan:
    """Build and check a deployment of a given model, whatever its keys name.

    Args:
        place: of the deployment, for errors.

    Raises:
        UserError: as :func:`make_training_plan`.
    """
    cluster, accelerator = load_kind(spec.cluster, place)
    cluster = cluster.with_price(spec.price_per_gpu_hour)
    cluster = _take_gpus(cluster, spec, place)
    layout = _make_block(spec, model, place)
    num_micro_batches = _count_micro_batches(spec, training, place)
    policy: PipeliningPolicy = build("pipelining", spec.pipelining, f"{place} [pipelining]")
    pp = spec.parallel.pp
    refusal = policy.find_refusal(pp, num_micro_batches)
    if refusal is None and "." in spec.pipelining["kind"]:
        refusal = find_schedule_fault(policy, pp, num_micro_batches)
    if refusal is not None:
        raise UserError(f"{place} [pipelining]: {refusal}")
    places = tuple(policy.place_chunks(pp))
    chunks = cut_chunks(_count_layers(spec.parallel, model, len(places), place))
    rank_tokens = spec.micro_batch * training.sequence_tokens // spec.parallel.cp
    placement = place_block(
        spec, model, (cluster, accelerator), layout, rank_tokens, seed, place, folder
    )
    return TrainingPlan(
        spec=spec,
        training=training,
        placement=placement,
        policy=policy,
        places=places,
        chunks=chunks,
        num_micro_batches=num_micro_batches,
        sends=_make_sends(placement, spec.num_gpus // pp, places, place),
        ring=_make_ring(placement, spec.parallel, place),
    )


def _count_layers(
    parallel: TrainingParallel, model: ModelSpec, num_chunks: int, place: str
) -> list[int]:
    """Count the layers of each chunk: as ``layout`` says, or as evenly as possible, where the
    embedding table and the output matrix may be a chunk each.
    """
    if parallel.layout is None:
        if num_chunks > model.num_layers + 2:
            raise UserError(
                f"{place} [parallel]: {num_chunks} chunks of layers on {parallel.pp} stages must "
                f"be at most {model.num_layers + 2}: {model.name} has {model.num_layers} layers, "
                "an embedding table and an output matrix"
            )
        return [len(layers) for layers in stage_layers(model.num_layers, num_chunks)]
    where = f"{place} [parallel]: layout '{parallel.layout}'"
    chunks = expand_layout(parallel.layout, where)
    if len(chunks) != num_chunks:
        raise UserError(
            f"{where} has {len(chunks)} chunks, and {parallel.pp} stages of "
            f"{num_chunks // parallel.pp} each need {num_chunks}; give pp or chunks to match, or "
            "other bars"
        )
    counts = [chunk.count("t") for chunk in chunks]
    if sum(counts) != model.num_layers:
        raise UserError(
            f"{where} has {sum(counts)} layers (t), and {model.name} has {model.num_layers}"
        )
    return counts


def expand_layout(layout: str, where: str) -> list[str]:
    """Expand a layout as Megatron-Core writes it to the symbols of each chunk.

    >>> expand_layout("Et*2|(t|)*2,L", "here")
    ['Ett', 't', 't', 'L']

    Raises:
        UserError: if it is not in that form, or of more layers than a model may have.
    """
    plain = re.sub(r"[,\s]", "", layout)
    plain = re.sub(r"\(([^()]*)\)\*(\d{1,3})", lambda found: found[1] * int(found[2]), plain)
    if sum(map(int, re.findall(r"\d+", plain))) > MOST_LAYERS:
        raise UserError(f"{where} has more than {MOST_LAYERS:,} layers")
    plain = re.sub(r"([Et|L])\*(\d{1,3})", lambda found: found[1] * int(found[2]), plain)
    if re.fullmatch(r"E[t|]*L", plain) is None:
        raise UserError(
            f"{where} must begin with E (embedding table), end with L (output matrix and loss), "
            "and have t (a layer) and | (the next chunk) between, such as 'Et*3|(tt|)*29|L'; m (a "
            "layer that predicts further tokens) is not simulated"
        )
    return plain.split("|")


def _make_sends(
    placement: Placement, num_ranks: int, places: Sequence[ChunkPlace], place: str
) -> dict[tuple[int, int], Sends]:
    """Price the transfers between stages of so many ranks, which lie behind each other: within a
    node where all ranks of both lie in one, otherwise from node to node.
    """
    calibration, cluster = placement.calibration, placement.cluster
    if not isinstance(calibration, Calibration):
        return {}
    found, made, ranks = {}, {}, np.arange(num_ranks)
    for stages in {(one.stage, two.stage) for one, two in pairwise(places)}:
        nodes, others = ((stage * num_ranks + ranks) // cluster.gpus_per_node for stage in stages)
        crosses = bool((nodes != others).any())
        if crosses not in made:
            apart = cluster.gpus_per_node if crosses else num_ranks
            links = wire_links(cluster, 2 * apart, place)
            made[crosses] = make_sends(Layout(1, apart, 1, 2), links, calibration)
        found[stages] = found[stages[::-1]] = made[crosses]
    return found


def _wire_group(cluster: ClusterSpec, size: int, place: str) -> Fabric:
    """Link the group of so many neighbouring ranks that is spread over nodes most: a stage waits
    for the slowest of its groups.
    """
    node, count = cluster.gpus_per_node, max(cluster.num_gpus // size, 1)

    def count_pairs(first: int) -> int:
        """Count the pairs of ranks that lie in one node."""
        _, members_N = np.unique((first + np.arange(size)) // node, return_counts=True)
        return int((members_N**2).sum())

    first = min((number * size % node for number in range(min(count, node))), key=count_pairs)
    return wire_links(cluster, first + size, place).from_rank(first)


def _make_ring(placement: Placement, parallel: TrainingParallel, place: str) -> CommModel | None:
    if parallel.cp == 1:
        return None
    fabric = _wire_group(placement.cluster, parallel.tp * parallel.cp, place)
    comm: CommPolicy = build("cost.comm", Calibration.communication, place)
    return comm.prepare(fabric, placement.calibration, placement.accelerator)


def place_block(
    spec: TrainingDeployment,
    model: ModelSpec,
    machines: tuple[ClusterSpec, AcceleratorSpec],
    layout: Layout,
    rank_tokens: int,
    seed: int,
    place: str,
    folder: Path,
    routing: Policy | None = None,
) -> Placement:
    """Place the block of ranks that share a micro-batch.

    Args:
        rank_tokens: tokens of a micro-batch in each data- and context-parallel group.
        routing: in place of the deployment's own, for a later part of the training.
    """
    cluster, accelerator = machines
    loaded = load_any_calibration(spec.calibration or accelerator.calibration, place)
    served = _describe_block(spec, layout, routing or spec.routing)
    fabric = _wire_group(cluster, layout.num_ranks, place)
    calibration: Calibration | HostRates
    if isinstance(loaded, HostCalibration):
        calibration, compute = choose_host_rates(loaded, spec, model, layout, place), loaded.compute
    elif lacking := accelerator.lacks(spec.dtype):
        raise UserError(
            f"{place}: dtype = '{spec.dtype}' needs {lacking} products, which {accelerator.title} "
            "does not have; say dtype = 'bf16'"
        )
    else:
        calibration, compute = loaded.choose_engine(_ENGINE), _COMPUTE
    return Placement(
        name=spec.name,
        model=model,
        cluster=cluster,
        accelerator=accelerator,
        calibration=calibration,
        layout=layout,
        precision=choose_precision(served, model),
        pruning=None,
        overlap="none",
        exchange_chunks=1,
        drafts=Drafts(),
        experts=plan_experts(served, model, layout, rank_tokens, seed, place, folder),
        fabric=fabric,
        compute=build("cost.compute", compute, f"{place} [compute]").prepare(
            accelerator, calibration
        ),
        comm=build("cost.comm", loaded.communication, f"{place} [communication]").prepare(
            fabric, calibration, accelerator
        ),
        sends=None,
        seed=seed,
    )


def _describe_block(
    spec: TrainingDeployment, layout: Layout, routing: Policy | None
) -> DeploymentSpec:
    """Describe the block as a deployment, whose parts are placed and priced alike."""
    return DeploymentSpec(
        name=spec.name,
        model=spec.model,
        dense_of=spec.dense_of,
        moe_of=spec.moe_of,
        cluster=spec.cluster,
        parallel=ParallelSpec(tp=layout.tp, attention_dp=layout.attention_dp, ep=layout.ep),
        weight_dtype=spec.dtype,
        kv_dtype="fp32" if spec.dtype == "fp32" else "bf16",
        dispatch_dtype=spec.dispatch_dtype,
        combine_dtype="fp32" if spec.dtype == "fp32" else "bf16",
        routing=routing,
        overflow=spec.overflow,
        dispatch=spec.dispatch,
    )


def _take_gpus(cluster: ClusterSpec, spec: TrainingDeployment, place: str) -> ClusterSpec:
    """Find the machines as the job sees them: nodes of as many GPUs as it takes of each.

    Raises:
        UserError: if the GPUs do not lie equally on nodes, with what would do.
    """
    if cluster.degraded:
        raise UserError(
            f"{place}: cluster '{spec.cluster}' has slower GPUs or some of another kind "
            "(degraded), which are not simulated in trainings; name a cluster without them"
        )
    num_gpus, most = spec.num_gpus, cluster.gpus_per_node
    each = spec.gpus_per_node or _share_nodes(cluster, num_gpus, place)
    if each > most or num_gpus % each:
        raise UserError(
            f"{place}: gpus_per_node ({each}) must divide num_gpus ({num_gpus}), and be at most "
            f"the {most} of a node of '{spec.cluster}'"
        )
    if num_gpus > each and cluster.scale_out is None:
        raise UserError(
            f"{place}: num_gpus ({num_gpus}) is more than the {each} of a node, and "
            f"'{spec.cluster}' has no links between nodes"
        )
    return cluster.model_copy(update={"num_gpus": num_gpus, "gpus_per_node": each})


def _share_nodes(cluster: ClusterSpec, num_gpus: int, place: str) -> int:
    """Share GPUs out equally over the fewest nodes that hold them, in whole trays."""
    most = cluster.gpus_per_node
    if num_gpus <= most:
        return num_gpus
    nodes, tray = -(-num_gpus // most), cluster.gpus_per_tray or most
    step = nodes * tray if tray < most else most
    if num_gpus % step:
        low = num_gpus // step * step
        whole = f"lie equally on {nodes} nodes of {most} in trays of {tray}"
        raise UserError(
            f"{place}: num_gpus ({num_gpus}) must "
            f"{whole if tray < most else f'be whole nodes of {most}'}, such as {low} or "
            f"{low + step}"
        )
    return num_gpus // nodes


def _make_block(spec: TrainingDeployment, model: ModelSpec, place: str) -> Layout:
    """Make the layout of a block, once it is found to divide the GPUs of a stage."""
    parallel = spec.parallel
    tp, ep, each = parallel.tp, parallel.ep or 1, parallel.tp * parallel.cp * parallel.pp
    if spec.num_gpus % each:
        raise UserError(
            f"{place} [parallel]: tp x cp x pp ({each}) must divide num_gpus ({spec.num_gpus})"
        )
    block = max(tp, ep)
    if block % min(tp, ep):
        raise UserError(f"{place} [parallel]: of tp ({tp}) and ep ({ep}) one must divide the other")
    ranks = spec.num_gpus // parallel.pp
    if ranks % block:
        raise UserError(
            f"{place} [parallel]: ep ({ep}) must divide the {ranks} GPUs of a stage (num_gpus / pp)"
        )
    return make_layout(ParallelSpec(tp=tp, attention_dp=block // tp, ep=ep), model, place)


def _count_micro_batches(spec: TrainingDeployment, training: TrainingSpec, place: str) -> int:
    parallel = spec.parallel
    dp = spec.num_gpus // (parallel.tp * parallel.cp * parallel.pp)
    at_once = dp * spec.micro_batch
    if training.sequence_tokens % (2 * parallel.cp) and parallel.cp > 1:
        raise UserError(
            f"{place} [parallel]: 2 x cp ({2 * parallel.cp}) must divide sequence_tokens "
            f"({training.sequence_tokens:,}): each rank takes a part from the front and one from "
            "the back"
        )
    if training.global_batch % at_once:
        near = max(training.global_batch // at_once, 1) * at_once
        raise UserError(
            f"{place}: dp x micro_batch ({dp} x {spec.micro_batch} = {at_once:,}) must divide the "
            f"global_batch ({training.global_batch:,}), as it does {near:,}"
        )
    return training.global_batch // at_once
