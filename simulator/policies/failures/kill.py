"""Loss of a GPU or a node at a given second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import MachineNumber, Nodes, Seconds
from simulator.policies.failures import Change, Machines


class Kill(Frozen):
    """Failure of a GPU, or of a node with all its GPUs, at a given second."""

    at_s: Seconds
    """Seconds since the first arrival."""
    gpu: MachineNumber | None = None
    """Number of the GPU that is lost, from 0; GPUs of a pool are numbered replica after replica.
    Give this or ``node``."""
    node: MachineNumber | None = None
    """Number of the node that is lost with all its GPUs, from 0. The deployment's own replicas fill
    nodes in order, and behind them those of a prefill pool on the same cluster."""
    num_nodes: Nodes = 1
    """Nodes that are lost together, from ``node`` on: those under one switch."""
    pool: Literal["prefill"] | None = None
    """Pool of the GPU, or of the cluster of the node: ``prefill``; absent = the deployment's
    own."""
    notice_s: Seconds = 0.0
    """Seconds before the loss at which it is announced, so that the GPUs' replicas get no more
    requests; 0 = it is not. Spot machines have two minutes on AWS, 30 s on Google Cloud and
    Azure."""
    restart_s: Seconds | None = None
    """Seconds from the loss until the GPUs work again; absent = never. Their replicas serve again
    when the deployment's ``recovery`` has started them."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.gpu is None) == (self.node is None):
            raise ValueError("names either a gpu or a node; give one of them, such as gpu = 0")
        if self.num_nodes > 1 and self.node is None:
            raise ValueError("num_nodes counts nodes from node on; give node, such as node = 0")
        return self

    def changes(
        self, machines: Mapping[str, Machines], rng: np.random.Generator
    ) -> Iterator[Change]:
        pool: str = self.pool or ("both" if "both" in machines else "decode")
        if pool not in machines:
            raise UserError('pool = "prefill": there is no prefill pool; leave it out')
        own = machines[pool]
        if self.gpu is not None:
            _check("gpu", self.gpu, own.num_gpus)
            hit: dict[str, tuple[int, ...]] = {pool: (self.gpu,)}
        else:
            assert self.node is not None
            there = {name: one for name, one in machines.items() if one.cluster == own.cluster}
            last = self.node + self.num_nodes - 1
            there_are = max(one.num_nodes for one in there.values())
            _check("node" if self.num_nodes == 1 else "node + num_nodes - 1", last, there_are)
            hit = {
                name: tuple(g for node in range(self.node, last + 1) for g in one.list_gpus(node))
                for name, one in there.items()
            }
        found = [
            Change(at_s, name, machines[name].find_replicas(gpus), starts, gpus)
            for at_s, starts in self._times()
            for name, gpus in hit.items()
            if gpus
        ]
        if self.notice_s:
            told_s = max(0.0, self.at_s - self.notice_s)
            notices = [
                change._replace(at_s=told_s, is_notice=True)
                for change in found
                if not change.starts
            ]
            found = notices + found
        return iter(found)

    def _times(self) -> list[tuple[float, bool]]:
        """Times of the loss and the repair, each with whether the GPUs work again."""
        stops = [(self.at_s, False)]
        return stops if self.restart_s is None else [*stops, (self.at_s + self.restart_s, True)]


def _check(what: str, number: int, there: int) -> None:
    if number >= there:
        raise UserError(f"{what} = {number}: there are {there:,}, numbered from 0")
