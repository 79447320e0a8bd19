"""GPUs and wires that are slower than the others of their cluster, always or for a while."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import Duration, MachineNumber, Seconds, SpeedShare


class Degraded(Frozen):
    """Speed that is left of a GPU, of a node's GPUs or of all: throttled kernels, a card that has
    lost lanes, a wire that others use too.
    """

    gpu: MachineNumber | None = None
    """Number of the GPU in the cluster, from 0; replicas of the deployment fill it in order, and
    behind them those of a prefill pool. Give this or ``node``; neither = all GPUs."""
    node: MachineNumber | None = None
    """Number of the node, from 0, all GPUs of which are slower."""
    compute: SpeedShare = 1.0
    """Share of their usual speed that its kernels reach; the engine's own work takes as long."""
    scale_up: SpeedShare = 1.0
    """Share of the usual rate of its wires inside the fast domain, both ways."""
    scale_out: SpeedShare = 1.0
    """Share of the usual rate of its wires between domains, both ways: what a failing card, or the
    traffic of others, leaves. Where all GPUs are named, of shared wires between domains too."""
    at_s: Seconds = 0.0
    """Seconds since the first arrival at which it becomes slower."""
    for_s: Duration | None = None
    """Seconds for which it stays so; absent = to the end."""

    @model_validator(mode="after")
    def _is_slower(self) -> Self:
        if self.gpu is not None and self.node is not None:
            raise ValueError("names both a gpu and a node; leave one of them out")
        if self.compute == self.scale_up == self.scale_out == 1.0:
            raise ValueError(
                "names nothing that is slower; give compute, scale_up or scale_out, "
                "such as compute = 0.8"
            )
        return self

    @property
    def until_s(self) -> float:
        """Seconds since the first arrival from which it is as fast as usual."""
        return float("inf") if self.for_s is None else self.at_s + self.for_s
