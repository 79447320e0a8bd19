"""GPUs of another kind in a cluster: what they compute with, and which groups may lie on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from simulator.base.arrays import Bools, Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.plugins import build
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.cluster import ClusterSpec
from simulator.config.deployment import DeploymentSpec
from simulator.config.engine import name_release
from simulator.config.failures import Degraded
from simulator.config.host import HostCalibration, load_any_calibration
from simulator.config.model import ModelSpec
from simulator.cost.compute import ComputeModel
from simulator.deployment.refusals import check_pruning
from simulator.policies.failures import Machines
from simulator.work.memory import Precision


def load_others(
    cluster: ClusterSpec, accelerator: AcceleratorSpec, place: str
) -> dict[str, AcceleratorSpec]:
    """Load the other kinds of GPUs in a cluster, by name.

    Args:
        accelerator: of the cluster.

    Raises:
        UserError: if there is no such accelerator, or one is faster than the cluster's own.
    """
    names = [one.accelerator for one in cluster.degraded if one.accelerator is not None]
    where = f"{place} [degraded]"
    others = {name: load_accelerator(name, where) for name in dict.fromkeys(names)}
    for name, other in others.items():
        ratios = (
            other.bf16_flops_per_s / accelerator.bf16_flops_per_s,
            other.memory_bytes_per_s / accelerator.memory_bytes_per_s,
        )
        if min(ratios) >= 1.0 and max(ratios) > 1.0:
            raise UserError(
                f"{where}: {name} is faster than '{cluster.name}' and its {accelerator.name}; name "
                f"a cluster of the faster kind, and the nodes with {accelerator.name} in degraded"
            )
    return others


def find_hit(one: Degraded, gpus: Ints, gpus_per_node: int) -> Bools:
    """Find which GPUs, by their numbers in the cluster, an entry names."""
    if one.gpu is not None:
        return np.asarray(gpus == one.gpu)
    if one.node is not None:
        return np.asarray(gpus // gpus_per_node == one.node)
    return np.ones(len(gpus), dtype=np.bool_)


def list_kinds(degraded: Iterable[Degraded], gpus: Ints, gpus_per_node: int) -> tuple[str, ...]:
    """List the accelerator of each GPU, by their numbers in the cluster; empty for the cluster's
    own.
    """
    kinds = [""] * len(gpus)
    for one in degraded:
        for place in np.flatnonzero(find_hit(one, gpus, gpus_per_node)).tolist():
            kinds[place] = one.accelerator or kinds[place]
    return tuple(kinds)


def choose_smallest(
    cluster: ClusterSpec,
    accelerator: AcceleratorSpec,
    others: Mapping[str, AcceleratorSpec],
    num_gpus: int,
) -> AcceleratorSpec:
    """Choose the accelerator with the least memory among the first GPUs of a cluster: engines take
    as many blocks on each rank.

    Args:
        num_gpus: GPUs that a pool may lie on.
    """
    kinds = list_kinds(cluster.degraded, np.arange(num_gpus), cluster.gpus_per_node)
    there = [others[kind] if kind else accelerator for kind in dict.fromkeys(kinds)]
    return min(there, key=lambda kind: kind.servable_memory_bytes)


def prepare_others(
    spec: DeploymentSpec,
    model: ModelSpec,
    precision: Precision,
    others: Mapping[str, AcceleratorSpec],
    compute: Policy | None,
    place: str,
) -> dict[str, ComputeModel]:
    """Prepare to price kernels on other kinds of GPUs, each by its own calibration.

    Args:
        compute: compute model that the deployment names; ``None`` = that of each calibration.

    Raises:
        UserError: if a calibration does not hold the engine or its pruned kernels, or is of a
            processor, or experts are offloaded.
    """
    found = {}
    for name, accelerator in others.items():
        if spec.offload is not None:
            raise UserError(
                f"{place} [degraded]: experts below the GPU's memory are priced for one kind of "
                "GPU; leave offload or degraded out"
            )
        loaded = load_any_calibration(accelerator.calibration, place)
        if isinstance(loaded, HostCalibration):
            raise UserError(
                f"{place} [degraded]: {name} is priced by times that were measured on a machine "
                "of its own kind, and stands in no other cluster; name a GPU"
            )
        loaded.check_engine(spec.engine, place)
        check_pruning(spec, model, precision, loaded, f"{place} [degraded {name}]")
        policy = build("cost.compute", compute or loaded.compute or {}, f"{place} [compute]")
        fits = loaded.choose_engine(name_release(spec.engine)).with_speeds(spec.speeds)
        faster = accelerator.with_speed(spec.speeds.memory, spec.speeds.arithmetic)
        found[name] = policy.prepare(faster, fits)
    return found


def check_tensor_groups(
    cluster: ClusterSpec, machines: Machines, tp: int, own: str, place: str
) -> None:
    """Refuse tensor-parallel groups over GPUs of several kinds: their ranks have equal parts of
    each matrix, so that all would wait for the slowest in every layer.

    Args:
        machines: GPUs of a pool.
        tp: GPUs of a group.
        own: accelerator of the cluster.

    Raises:
        UserError: with the group, and what would do.
    """
    gpus = machines.first_gpu + np.arange(machines.num_gpus)
    kinds = [kind or own for kind in list_kinds(cluster.degraded, gpus, machines.gpus_per_node)]
    for first in range(0, machines.num_gpus, tp):
        group, begin = sorted(set(kinds[first : first + tp])), machines.first_gpu + first
        if len(group) > 1:
            raise UserError(
                f"{place} [degraded]: the tensor-parallel group on GPUs {begin} to "
                f"{begin + tp - 1} has GPUs of several kinds ({', '.join(group)}), which is not "
                "simulated; use a tp that divides the GPUs of each kind, or name other nodes"
            )
