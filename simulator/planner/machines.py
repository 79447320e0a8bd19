"""The clusters of a question: what a GPU costs, and which sizes all limits allow."""

from __future__ import annotations

import math
from typing import NamedTuple, TypedDict

from simulator.base.errors import UserError
from simulator.config.capacity import CandidateCluster, Question, Spare
from simulator.config.cluster import ClusterSpec, load_kind, name_size

WHERE = "plan"
"""First words of errors about a question."""


class WholeNodes(TypedDict):
    """The cluster of whole nodes that would do, with replicas side by side."""

    gpus_in_whole_nodes: int | None
    cost_per_hour_in_whole_nodes: float | None


class Machines(NamedTuple):
    """One of the question's clusters: what it costs, and the sizes that it comes in."""

    offer: CandidateCluster
    spec: ClusterSpec
    sizes: tuple[int, ...]
    """Numbers of GPUs, within all limits, rising."""
    price_per_gpu_hour: float
    watts_per_gpu: float
    gpu_hour: float
    """Cost of a GPU-hour: its price, and its electricity where that is paid apart."""
    bound: str = ""
    """Limit that sets the largest size; empty where it is the largest that the file
    lists."""
    beyond: str = ""
    """Why no size at all can be used; empty where one can."""

    def holding(self, num_gpus: int) -> int | None:
        """The smallest size with so many GPUs; ``None`` where all are smaller."""
        return next((size for size in self.sizes if size >= num_gpus), None)

    def find_whole_nodes(self, host_gpus: int, num_gpus: int, lost: Spare) -> WholeNodes:
        """The cluster of whole nodes with replicas side by side, and its cost per hour; ``None``
        where a node is one already, or beyond the limits.

        Args:
            host_gpus: GPUs that are rented on one node.
            num_gpus: GPUs of the replicas that must be left.
        """
        per_node, gpus = self.spec.gpus_per_node, None
        if host_gpus < per_node and num_gpus:
            needed = num_gpus + lost.nodes * per_node + lost.gpus * host_gpus
            gpus = next((n for n in self.sizes if n >= needed and n % per_node == 0), None)
        cost = None if gpus is None else gpus * self.gpu_hour
        return {"gpus_in_whole_nodes": gpus, "cost_per_hour_in_whole_nodes": cost}

    def name_size(self, size: int) -> str:
        """The cluster's name with its number of GPUs."""
        return name_size(self.offer.cluster, size) if self.spec.sizes else self.offer.cluster


def machines_of(offer: CandidateCluster, question: Question) -> Machines:
    """Read the price of a cluster that is offered, and the sizes that all limits allow.

    Raises:
        UserError: if the cluster is unknown or has no price.
    """
    limits, power, files = question.limits, question.power, f"{WHERE} [clusters '{offer.cluster}']"
    spec, accelerator = load_kind(offer.cluster, files)
    price = offer.price_per_gpu_hour
    if price is None:
        price = spec.price_per_gpu_hour
    if price is None:
        raise UserError(
            f"{files}: has no price; give price_per_gpu_hour (0 for machines that are there anyway)"
        )
    watts = accelerator.board_power_w * power.overhead
    gpu_hour = price + watts / 1000 * power.price_per_kwh
    sizes = sorted(spec.sizes or (spec.num_gpus,))
    least = sizes[0]
    fewest = f"even {_gpus(least)} of {offer.cluster}"
    # For each limit: GPUs that it allows, its name, and why the smallest size is beyond it.
    bounds: list[tuple[float, str, str]] = []
    for name, count in (("max_gpus", offer.max_gpus), ("limits.gpus", limits.gpus)):
        if count is not None:
            text = f"{offer.cluster} comes in {_gpus(least)} or more"
            bounds.append((count, f"{name} = {count}", text))
    if limits.nodes is not None:
        text = f"{offer.cluster} comes in {-(-least // spec.gpus_per_node)} nodes or more"
        bounds.append((limits.nodes * spec.gpus_per_node, f"limits.nodes = {limits.nodes}", text))
    if limits.power_w is not None:
        text = f"{fewest} may draw {least * watts:,.0f} W"
        bounds.append((limits.power_w / watts, f"limits.power_w = {limits.power_w:g}", text))
    if limits.budget_per_hour is not None and gpu_hour > 0:
        name = f"the budget of {limits.budget_per_hour:g} {power.currency} per hour"
        text = f"{fewest} would cost {least * gpu_hour:.2f} {power.currency} per hour"
        bounds.append((limits.budget_per_hour / gpu_hour, name, text))
    most, name, too_much = min(bounds, default=(math.inf, "", ""))
    allowed = tuple(size for size in sizes if size <= most)
    bound = name if most < sizes[-1] else ""
    beyond = "" if allowed else f"{too_much}, and {name} is the limit"
    spare = question.spare.nodes * min(sizes[0], spec.gpus_per_node) + question.spare.gpus
    if allowed and spare >= allowed[-1]:
        most_text = (
            f"the {_gpus(allowed[-1])} of {offer.cluster} that {name} allows"
            if bound
            else f"{_gpus(allowed[-1])} of {offer.cluster}"
        )
        beyond = (
            f"holding {question.spare} (a node has {_gpus(spec.gpus_per_node)}) free for failures "
            f"leaves nothing of {most_text}"
        )
    return Machines(offer, spec, allowed, price, watts, gpu_hour, bound, beyond)


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
