"""Refusals of experts that cannot be offloaded, before anything is built."""

from __future__ import annotations

from simulator.base.errors import UserError
from simulator.config.cluster import ClusterSpec
from simulator.config.model import ModelSpec
from simulator.config.offload import OffloadSpec
from simulator.config.pruning import Pruning
from simulator.work.layout import Layout
from simulator.work.memory import Precision, expert_bytes_per_layer


def check_offload(
    spec: OffloadSpec | None,
    model: ModelSpec,
    cluster: ClusterSpec,
    layout: Layout,
    precision: Precision,
    pruning: Pruning | None,
    place: str,
) -> None:
    """Refuse experts that cannot be offloaded.

    Args:
        place: of the deployment, for errors.

    Raises:
        UserError: if the model is dense, the replica has several GPUs, or the cluster lacks the
            memory or the processor that is asked for.
    """
    if spec is None:
        return
    where = f"{place} [offload]"
    if model.moe is None:
        raise UserError(
            f"{where}: {model.name} is dense and has no experts to offload; leave it out"
        )
    if layout.num_gpus > 1:
        raise UserError(
            f"{where}: experts of replicas of one GPU are offloaded, and this one has "
            f"{layout.num_gpus}; leave parallel or offload out"
        )
    num_experts = model.moe.num_experts
    if spec.slots > num_experts:
        raise UserError(f"{where}: slots must be at most the {num_experts} experts of a layer")
    _check_host(spec, cluster, num_experts, where)
    layer_bytes = expert_bytes_per_layer(
        model.moe, model.hidden_size, layout, precision, pruning=pruning
    )
    _check_room(spec, cluster, model.num_moe_layers * layer_bytes, precision.experts, where)


def _check_host(spec: OffloadSpec, cluster: ClusterSpec, num_experts: int, where: str) -> None:
    """Refuse a memory or a processor that the cluster's file does not have."""
    host = cluster.host
    tiers = [name for name in ("dram", "storage") if getattr(host, name, None) is not None]
    if spec.tier not in tiers:
        raise UserError(
            f"{where}: cluster '{cluster.name}' has no [host.{spec.tier}] in its file; "
            + (f'tier = "{tiers[0]}" is there' if tiers else "add one, with its source")
        )
    is_needed = spec.uploads is not None and spec.uploads < num_experts
    if is_needed and (host is None or host.processor is None):
        raise UserError(
            f"{where}: uploads = {spec.uploads} leaves experts to a processor, and cluster "
            f"'{cluster.name}' has no [host.processor]; leave uploads out"
        )


def _check_room(
    spec: OffloadSpec, cluster: ClusterSpec, needed: float, dtype: str, where: str
) -> None:
    """Refuse experts of ``needed`` bytes that the memory below has no room for."""
    below = getattr(cluster.host, spec.tier)
    if needed <= below.memory_bytes:
        return
    storage = getattr(cluster.host, "storage", None)
    wider = spec.tier == "dram" and storage is not None and storage.memory_bytes >= needed
    raise UserError(
        f"{where}: the experts take {needed / 1e9:,.1f} GB in {dtype}, and [host.{spec.tier}] of "
        f"cluster '{cluster.name}' has {below.memory_bytes / 1e9:,.1f} GB; "
        + ('tier = "storage" would do' if wider else "a narrower expert_dtype may do")
    )
