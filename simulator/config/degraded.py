"""GPUs and wires that are slower than the others of their cluster, always or for a while, and GPUs
of another kind.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import Duration, MachineNumber, Seconds, SpeedShare


class Degraded(Frozen):
    """Speed that is left of a GPU, of a node's GPUs or of all: throttled kernels, a card that has
    lost lanes, a wire that others use too; or another kind of GPU, usually an older one.
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
