"""Traffic that uniformly random expert choices put on each rank and link, through the dispatch
policies and topologies of the simulator.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.data import available_files
from simulator.base.plugins import build
from simulator.config.cluster import ClusterSpec, load_kind
from simulator.policies.dispatch import DispatchPolicy
from simulator.policies.messages import Messages
from simulator.policies.topology import Fabric

_TOKENS, _TOKENS_A_RANK, _SEED = 8192, 32, 7
"""Tokens that are routed at least, in all and of each rank, and the seed of their choices."""


class Routed(NamedTuple):
    """Traffic for each token of every rank, on average over ranks, since random choices favour
    none.
    """

    copies: float
    """Vectors that a rank sends."""
    crossing: float
    """Vectors among them that leave the fast domain."""
    scale_up_s: float
    """Seconds that the busiest kind of link inside domains takes for one byte of each vector, at
    its peak."""
    scale_out_s: float
    """Seconds of the busiest kind of link between domains."""
    num_nodes: int


@cache
def cluster_of(accelerator: str) -> ClusterSpec | None:
    """The cluster file of an accelerator's own name: how its GPUs are usually joined; ``None`` if
    there is none.
    """
    if accelerator not in available_files("cluster_configs"):
        return None
    return load_kind(accelerator, f"GPU '{accelerator}'")[0]


@cache
def fabric_of(accelerator: str, num_ranks: int) -> Fabric | None:
    """``num_ranks`` GPUs of one kind, joined as in their cluster file; ``None`` where there is
    none, or it joins fewer.
    """
    cluster = cluster_of(accelerator)
    if cluster is None or (num_ranks > cluster.gpus_per_node and cluster.scale_out is None):
        return None
    fabric: Fabric = build("topology", cluster.topology, f"cluster '{cluster.name}'").wire(
        cluster, num_ranks
    )
    return fabric


@cache
def draw_choices(
    accelerator: str,
    num_ranks: int,
    dispatch: str,
    num_experts: int,
    top_k: int,
    groups: int,
    chosen_groups: int,
) -> Routed | None:
    """Random choices of ``top_k`` of ``num_experts``, spread over ranks in order; ``None`` where
    such ranks are not joined.

    Args:
        groups: of experts, of which each token uses ``chosen_groups`` (DeepSeek-V3's router); 1 =
            no such limit.
    """
    joined = fabric_of(accelerator, num_ranks)
    if joined is None:
        return None
    fabric = joined.direct  # an exchange's kernels post to their own GPU's card
    rng = np.random.default_rng(_SEED)
    num_tokens = max(_TOKENS, _TOKENS_A_RANK * num_ranks) // num_ranks * num_ranks
    order_TE = rng.random((num_tokens, num_experts))
    if groups > 1:
        group_E = np.arange(num_experts) * groups // num_experts
        rank_TG = np.argsort(np.argsort(rng.random((num_tokens, groups)), axis=1), axis=1)
        order_TE += (rank_TG >= chosen_groups)[:, group_E]
    topk_ids_TK = np.argpartition(order_TE, top_k - 1, axis=1)[:, :top_k]
    rank_TK = topk_ids_TK.astype(np.int64) * num_ranks // num_experts
    source_T = np.arange(num_tokens, dtype=np.int64) * num_ranks // num_tokens
    policy: DispatchPolicy = build("dispatch", {"kind": dispatch}, "alltoall")
    copies_SR = policy.copies(rank_TK, source_T, fabric.node_R) / (num_tokens / num_ranks)
    crosses_SR = fabric.node_R[:, None] != fabric.node_R[None, :]
    seconds_L = fabric.sum_by_link(Messages.from_matrix(copies_SR)) / np.array(
        [link.bytes_per_s for link in fabric.links]
    )
    return Routed(
        copies=float(copies_SR.sum() / num_ranks),
        crossing=float(copies_SR[crosses_SR].sum() / num_ranks),
        scale_up_s=_busiest(fabric, seconds_L, "scale_up"),
        scale_out_s=_busiest(fabric, seconds_L, "scale_out"),
        num_nodes=fabric.num_nodes,
    )


def _busiest(fabric: Fabric, seconds_L: Floats, kind: str) -> float:
    """The mean of each sort of link (all GPUs' ports out, all sockets' links in, ...), and the
    largest of these means.
    """
    sorts: dict[str, list[float]] = {}
    for link, seconds in zip(fabric.links, seconds_L, strict=True):
        if link.kind == kind:
            sorts.setdefault(re.sub(r"\d+", "#", link.name), []).append(float(seconds))
    return max((float(np.mean(found)) for found in sorts.values()), default=0.0)
