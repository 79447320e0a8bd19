"""GPUs of another kind in a cluster: what they compute with, and which groups may lie on them."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.plugins import build
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.cluster import ClusterSpec
from simulator.config.host import HostCalibration, load_any_calibration
from simulator.cost.compute import ComputeModel
from simulator.policies.failures import Machines


def load_others(cluster: ClusterSpec, place: str) -> dict[str, AcceleratorSpec]:
    """Load the other kinds of GPUs in a cluster, by name.

    Raises:
        UserError: if there is no such accelerator.
    """
    names = [one.accelerator for one in cluster.degraded if one.accelerator is not None]
    return {name: load_accelerator(name, f"{place} [degraded]") for name in dict.fromkeys(names)}


def prepare_others(
    others: Mapping[str, AcceleratorSpec], compute: Policy | None, engine: str, place: str
) -> dict[str, ComputeModel]:
    """Prepare to price kernels on other kinds of GPUs, each by its own calibration.

    Args:
        compute: compute model that the deployment names; ``None`` = that of each calibration.
        engine: engine whose kernels run.

    Raises:
        UserError: if a calibration does not hold the engine, or is of a processor.
    """
    found = {}
    for name, accelerator in others.items():
        loaded = load_any_calibration(accelerator.calibration, place)
        if isinstance(loaded, HostCalibration):
            raise UserError(
                f"{place} [degraded]: {name} is priced by times that were measured on a machine "
                "of its own kind, and stands in no other cluster; name a GPU"
            )
        loaded.check_engine(engine, place)
        policy = build("cost.compute", compute or loaded.compute or {}, f"{place} [compute]")
        found[name] = policy.prepare(accelerator, loaded.choose_engine(engine))
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
    kinds = [own] * machines.num_gpus
    for one in cluster.degraded:
        for place_of in range(machines.num_gpus) if one.accelerator is not None else ():
            gpu = machines.first_gpu + place_of
            if one.gpu == gpu or one.node == gpu // machines.gpus_per_node:
                kinds[place_of] = str(one.accelerator)
    for first in range(0, machines.num_gpus, tp):
        group, begin = sorted(set(kinds[first : first + tp])), machines.first_gpu + first
        if len(group) > 1:
            raise UserError(
                f"{place} [degraded]: the tensor-parallel group on GPUs {begin} to "
                f"{begin + tp - 1} has GPUs of several kinds ({', '.join(group)}), which is not "
                "simulated; use a tp that divides the GPUs of each kind, or name other nodes"
            )
