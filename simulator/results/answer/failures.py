"""Lost GPUs and nodes in an answer: what is left, what would stand it, and what stands idle."""

from __future__ import annotations

from simulator.results.answer.parts import Banded, Part


class SpareGpus(Part):
    """GPUs that the recommended cluster holds free for failures."""

    lost: str = ""
    """Machines that may be lost, in words; empty where none may."""
    gpus: int = 0
    """GPUs that are held free."""
    availability: float | None = None
    """Share of the time for which as many replicas were asked to serve as keep the targets; null
    where none was asked for."""
    replicas: int | None = None
    """Spare replicas that are deployed for it, of all pools."""
    replica_gpus: int | None = None
    """GPUs of these."""
    enough_low: float | None = None
    """Share of the time in which as many replicas serve as keep the targets, at the highest rate of
    failures."""
    enough_high: float | None = None
    """Share of that time at the lowest rate of failures."""
    alone_low: float | None = None
    """Share of that time without the spare replicas, at the highest rate of failures."""
    alone_high: float | None = None
    """Share of that time without them, at the lowest rate of failures."""
    nodes: int | None = None
    """Nodes of the cluster."""
    is_spread: bool = False
    """Whether each replica lies on a node of its own."""
    gpus_in_whole_nodes: int | None = None
    """GPUs that whole nodes would take; null where the nodes are whole already."""
    cost_per_hour_in_whole_nodes: float | None = None
    """Cost per hour of these, in the plan's currency."""


class LossRow(Banded):
    """The recommended deployment with GPUs or nodes lost, at its worst."""

    lost: str
    """Machines that are lost, in words."""
    nodes_lost: int = 0
    """Nodes lost."""
    gpus_lost: int = 0
    """GPUs lost."""
    gpus_left: int = 0
    """GPUs that are left."""
    node_gpus: int = 0
    """GPUs of a node."""
    replicas_left: int = 0
    """Replicas that are left."""
    prefill_replicas_left: int = 0
    """Prefill replicas that are left."""
    goodput_per_s: float | None = None
    """Requests per second that are served within their limits."""
    attainment: float | None = None
    """Share of requests that are served within their limits."""
    worst_target: str | None = None
    """Name of the target that is missed by most, or kept by least."""
    worst_ratio: float | None = None
    """Measured over limit of that target."""
    met: bool = False
    """Whether every target is met."""
    text: str = ""
    """Consequence in words, where no figure says it."""
    note: str = ""
    """Requests that the row is about."""


class SpareRow(Banded):
    """The smallest cluster that keeps every target with GPUs or nodes lost."""

    lost: str
    """Machines that may be lost, in words."""
    nodes_lost: int = 0
    """Nodes that may be lost."""
    gpus_lost: int = 0
    """GPUs that may be lost."""
    gpus: int | None = None
    """GPUs of the cluster; null where none within the limits would do."""
    nodes: int | None = None
    """Nodes of the cluster."""
    cost_per_hour: float | None = None
    """Cost per hour, in the plan's currency."""
    extra_cost_per_hour: float | None = None
    """Cost per hour beyond that of the cluster without spare."""
    gpus_in_whole_nodes: int | None = None
    """GPUs that whole nodes would take; null where the nodes are whole already."""
    cost_per_hour_in_whole_nodes: float | None = None
    """Cost per hour of these, in the plan's currency."""
    enough_low: float | None = None
    """Share of the time in which no more is lost, at the highest rate of failures."""
    enough_high: float | None = None
    """Share of the time in which no more is lost, at the lowest rate of failures."""
    why: str = ""
    """Reason why there is no such cluster."""


class SpareExperts(Part):
    """Memory that copies of experts take."""

    deployment: str = ""
    """The deployment in words."""
    slots: int
    """Slots of experts that hold copies."""
    share_of_slots: float
    """Share of these in all slots."""
    bytes_per_gpu: float
    """Bytes that they take on one GPU."""
    share_of_memory: float
    """Share of these in the memory of a GPU."""
    cost_per_hour: float
    """Cost per hour of that memory, in the plan's currency."""
    cache_tokens_forgone: int
    """Tokens that the KV cache of a rank could hold instead."""
    cost_per_hour_without: float | None = None
    """Cost per hour of the cluster that would do without copies."""


class Idle(Part):
    """Idle part of the recommended cluster."""

    unused_gpus: int = 0
    """GPUs that no replica uses, besides those held back."""
    unused_cost_per_hour: float = 0.0
    """Cost per hour of these, in the plan's currency."""
    held_back: str = ""
    """Machines that may be lost, in words."""
    held_back_gpus: int = 0
    """GPUs that are held back for failures."""
    held_back_cost_per_hour: float = 0.0
    """Cost per hour of these, in the plan's currency."""
    spare_experts: SpareExperts | None = None
    """Memory of copies of experts; null without copies."""
