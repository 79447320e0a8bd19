"""Rates of failures, and GPUs and links that are slower than others."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import (
    Duration,
    Hours,
    MachineNumber,
    Nodes,
    Ratio,
    Seconds,
    Share,
    SpeedShare,
)


class FailureShares(Frozen):
    """Shares of failures that take more than one GPU."""

    node_share: Ratio = 0.0
    """Share of failures that take a whole node, with every replica that has GPUs on it."""
    switch_share: Ratio = 0.0
    """Share of failures that take all nodes under a switch; in Llama 3's training 35 of 419
    interruptions were of network switches or cables (arXiv:2407.21783, table 5)."""
    nodes_per_switch: Nodes = 4
    """Nodes under one switch, which the nodes of the cluster fill in order."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.node_share + self.switch_share > 1:
            raise ValueError(
                f"node_share ({self.node_share:g}) and switch_share ({self.switch_share:g}) are "
                "shares of the same failures; they must add up to at most 1"
            )
        return self


class FailureRates(FailureShares):
    """Rates at which GPUs fail, and the time until others serve in their place.

    Published rates differ by six (:class:`simulator.policies.failures.random.Random`), so there are
    two.
    """

    mtbf_gpu_hours_low: Hours = 8_100.0
    """Mean hours that a GPU works between two failures, at worst: 1,024 A100 interrupted every
    7.9 h (arXiv:2410.21680)."""
    mtbf_gpu_hours_high: Hours = 50_700.0
    """Mean hours that a GPU works between two failures, at best: 419 interruptions in 54 days of
    16,384 H100 (arXiv:2407.21783)."""
    repair_hours: Hours = 1.0
    """Hours until another machine serves in its place; assumed, where spare ones are to be had."""
    availability: Share | None = None
    """Share of the time for which at least as many replicas serve as keep the targets, at
    ``mtbf_gpu_hours_low``, such as 0.999: spare replicas are deployed for it (N+k). Absent =
    none."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.mtbf_gpu_hours_low > self.mtbf_gpu_hours_high:
            raise ValueError(
                f"mtbf_gpu_hours_low ({self.mtbf_gpu_hours_low:g}) must be at most "
                f"mtbf_gpu_hours_high ({self.mtbf_gpu_hours_high:g})"
            )
        if self.availability == 1:
            raise ValueError("availability must be below 1; no number of spare replicas reaches it")
        return self


class Degraded(Frozen):
    """Speed that is left of a GPU, of a node's GPUs or of all: throttled kernels, a card that has
    lost lanes, a link that others use too; or another kind of GPU, usually an older one.
    """

    gpu: MachineNumber | None = None
    """Number of the GPU in the cluster, from 0; replicas of the deployment fill it in order, and
    behind them those of a prefill pool. Give this or ``node``; neither = all GPUs."""
    node: MachineNumber | None = None
    """Number of the node, from 0, all GPUs of which are slower."""
    compute: SpeedShare = 1.0
    """Share of their usual speed that its kernels reach; the engine's own work takes as long."""
    scale_up: SpeedShare = 1.0
    """Share of the usual rate of its links inside the fast domain, both ways."""
    scale_out: SpeedShare = 1.0
    """Share of the usual rate of its links between domains, both ways: what a failing card, or the
    traffic of others, leaves. Where all GPUs are named, of shared links between domains too."""
    accelerator: str | None = None
    """Kind of GPU that stands there instead of the cluster's own, a name in
    ``cluster_configs/accelerators``: its kernels are priced by its own calibration. Absent = the
    cluster's own."""
    at_s: Seconds = 0.0
    """Seconds since the first arrival at which it becomes slower."""
    for_s: Duration | None = None
    """Seconds for which it stays so; absent = to the end."""

    @model_validator(mode="after")
    def _is_slower(self) -> Self:
        if self.gpu is not None and self.node is not None:
            raise ValueError("names both a gpu and a node; leave one of them out")
        if self.accelerator is not None:
            self._check_kind()
        elif self.compute == self.scale_up == self.scale_out == 1.0:
            raise ValueError(
                "names nothing that is slower; give compute, scale_up or scale_out, "
                "such as compute = 0.8, or the accelerator that stands there"
            )
        return self

    def _check_kind(self) -> None:
        if self.gpu is None and self.node is None:
            raise ValueError(
                f"accelerator = '{self.accelerator}' names no gpu and no node; where all GPUs are "
                "of that kind, name a cluster of them"
            )
        if self.at_s or self.for_s is not None:
            raise ValueError(
                f"accelerator = '{self.accelerator}' stands there always; leave at_s and for_s out"
            )

    @property
    def until_s(self) -> float:
        """Seconds since the first arrival from which it is as fast as usual."""
        return float("inf") if self.for_s is None else self.at_s + self.for_s
