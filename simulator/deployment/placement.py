"""Parts of a replica, and their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.plugins import build
from simulator.base.recent import Recent
from simulator.base.streams import open_stream
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.cluster import ClusterSpec
from simulator.config.deployment import DeploymentSpec, Overlap
from simulator.config.host import HostRates
from simulator.config.model import ModelSpec
from simulator.config.sparsity import Pruning
from simulator.cost.comm import CommModel
from simulator.cost.compute import ComputeModel
from simulator.cost.stages import Sends
from simulator.deployment.expert_plan import ExpertPlan
from simulator.deployment.offload_plan import OffloadPlan
from simulator.policies.contracts import wire_cluster
from simulator.policies.overflow import may_drop
from simulator.policies.speculation import Drafts
from simulator.policies.topology import Fabric
from simulator.work.layout import Layout
from simulator.work.memory import Precision, make_module

_FABRICS = Recent[tuple[str, int], Fabric](most=256)
"""Links of replicas built lately, shared by plans on the same machines."""


@dataclass(frozen=True)
class Placement:
    """Parts of one replica and their places, which alone decide the price of a step."""

    name: str
    """The deployment's name, for errors."""
    model: ModelSpec
    cluster: ClusterSpec
    accelerator: AcceleratorSpec
    calibration: Calibration | HostRates
    layout: Layout
    precision: Precision
    pruning: Pruning | None
    """Pruning of feed-forward blocks; ``None`` where all are whole."""
    overlap: Overlap
    """Overlap of communication: with ``two_batch``, half a step computes while the other half's
    tokens travel, and with ``shared_experts`` these compute while tokens travel to the others."""
    exchange_chunks: int
    """Chunks that tokens travel to experts and back in."""
    drafts: Drafts
    """Draft tokens that steps verify besides one token of each sequence."""
    experts: ExpertPlan | None
    """Routed experts; ``None`` for a dense model."""
    fabric: Fabric
    """Links between the ranks of the replica."""
    compute: ComputeModel
    comm: CommModel
    sends: Sends | None
    """Transfers between the stages of a pipeline; ``None`` without one."""
    seed: int
    slow_R: Floats | None = None
    """Factor on the seconds in which each rank computes, ``[R]``; ``None`` where all are as fast as
    usual."""
    others: Mapping[str, ComputeModel] = field(default_factory=dict)
    """Prices of kernels on other kinds of GPUs in the cluster, by accelerator."""
    accelerator_R: tuple[str, ...] | None = None
    """Accelerator of each rank, ``[R]``, where some are of another kind than the cluster's own,
    which is an empty name; ``None`` where none is."""
    offload: OffloadPlan | None = None
    """Experts that lie below the GPU's memory; ``None`` where it holds all."""

    @cached_property
    def module(self) -> Placement | None:
        """The module that drafts, as a placement: few layers on the same ranks, with the launches
        of a pass as the engine's own time; ``None`` where no module drafts.
        """
        drafts, calibration = self.drafts, self.calibration
        if not drafts.num_layers or isinstance(calibration, HostRates):
            return None
        own = {"step_s": drafts.launch_s, "sequence_s": 0.0}
        own |= {"prompt_layer_s": 0.0, "prompt_expert_layer_s": 0.0}
        engine = calibration.engine.model_copy(update=own)
        return replace(
            self,
            model=make_module(self.model, drafts),
            calibration=calibration.model_copy(update={"engine": engine}),
            drafts=drafts._replace(num_layers=0),
        )

    @property
    def prompt_s(self) -> float:
        """Seconds of engine overhead that a step with prompt tokens takes beyond one without."""
        engine = self.calibration.engine
        return engine.prompt_s(self.model.num_layers, self.model.num_moe_layers)

    def slow_down(self, seconds_R: Floats) -> Floats:
        """Multiply the seconds in which each rank computes, ``[..., R]``, by what it is slower."""
        return seconds_R if self.slow_R is None else seconds_R * self.slow_R

    @cached_property
    def kind_R(self) -> Ints:
        """Number of each rank's kind of GPU, 0 for the cluster's own and counting on through
        ``others``, ``[R]``.
        """
        if self.accelerator_R is None:
            return np.zeros(self.layout.num_ranks, dtype=np.int64)
        numbers = {"": 0} | {name: number for number, name in enumerate(self.others, 1)}
        return np.array([numbers[name] for name in self.accelerator_R], dtype=np.int64)

    def combine_kinds(self, price: Callable[[int], Floats]) -> Floats:
        """Seconds in which each rank computes, ``[..., R]``, on its own kind of GPU, which may be
        slower than others of it.

        Args:
            price: seconds of every rank, ``[..., R]``, were all GPUs of the kind of this number.
        """
        seconds = price(0)
        if self.accelerator_R is not None:
            for kind in range(1, len(self.others) + 1):
                seconds = np.where(self.kind_R == kind, price(kind), seconds)
        return self.slow_down(seconds)

    @cached_property
    def speed_classes(self) -> tuple[Ints, Ints]:
        """Class of each data-parallel group, ``[D]``, and the first group of each class: groups
        whose ranks and ports are equally fast are of one.
        """
        ports: list[list[float]] = [[] for _ in range(self.layout.num_ranks)]
        for link in self.fabric.links:
            if link.rank >= 0:
                ports[link.rank].append(link.bytes_per_s)
        slow_R, tp = self.slow_down(np.ones(self.layout.num_ranks)).tolist(), self.layout.tp
        kinds = self.accelerator_R or ("",) * self.layout.num_ranks
        each = list(zip(slow_R, kinds, map(tuple, ports), strict=True))
        groups = [tuple(each[d * tp : (d + 1) * tp]) for d in range(self.layout.attention_dp)]
        first = list(dict.fromkeys(groups))
        return (
            np.array([first.index(group) for group in groups], dtype=np.int64),
            np.array([groups.index(group) for group in first], dtype=np.int64),
        )

    @property
    def node_of_ep_rank(self) -> Ints:
        """Fast domain of each expert-parallel rank, ``[R]``."""
        return self.fabric.node_R[:: self.layout.moe_tp]

    @property
    def drops_pairs(self) -> bool:
        """Whether an overflow policy may change the experts that tokens chose."""
        return self.experts is not None and may_drop(self.experts.overflow)

    def rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        """Open the random stream of one purpose, which deployments of one seed share
        (:func:`~simulator.base.streams.open_stream`).
        """
        return open_stream(self.seed, purpose, *numbers)


def wire_links(cluster: ClusterSpec, num_ranks: int, place: str) -> Fabric:
    """Build the links of a replica; once for all plans on the same machines."""
    key = (cluster.model_dump_json(exclude={"name", "num_gpus", "degraded"}), num_ranks)
    where = f"{place}: cluster '{cluster.name}' [topology]"
    return _FABRICS.get(
        key, lambda: wire_cluster(build("topology", cluster.topology, where), cluster, num_ranks)
    )


def choose_precision(spec: DeploymentSpec, model: ModelSpec) -> Precision:
    """Choose the number formats of weights, cache and exchanged vectors: the model's own where the
    deployment names none.
    """
    weights = spec.weight_dtype or model.weight_dtype
    experts = spec.expert_dtype or spec.weight_dtype or model.expert_dtype or model.weight_dtype
    wide = "fp32" if weights == "fp32" else "bf16"
    narrow = experts in ("fp8", "fp8_block", "mxfp4", "nvfp4")
    dispatch = spec.dispatch_dtype or ("fp8" if narrow else wide)
    return Precision(weights, experts, spec.kv_dtype or wide, dispatch, spec.combine_dtype or wide)
