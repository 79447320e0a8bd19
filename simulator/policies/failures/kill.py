"""A GPU or a node is lost at a given second, and every replica that has a part on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import MachineNumber, Seconds
from simulator.policies.failures import Change, Machines


class Kill(Frozen):
    """What it had in flight is cut off at that instant, and noticed at once."""

    at_s: Seconds
    """Seconds since the first arrival."""
    gpu: MachineNumber | None = None
    """The GPU that is lost, from 0; GPUs of a pool are numbered replica after replica. Either this
    or ``node``."""
    node: MachineNumber | None = None
    """The node that is lost with all its GPUs, from 0; the GPUs of a pool fill nodes in order."""
    pool: Literal["prefill"] | None = None
    """``prefill`` where what is lost is of the prefill pool; absent = of the deployment's own."""
    restart_s: Seconds | None = None
    """Seconds from the loss until its replicas serve again, with empty caches; absent = never."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.gpu is None) == (self.node is None):
            raise ValueError("names either a gpu or a node")
        return self

    def changes(
        self, machines: Mapping[str, Machines], rng: np.random.Generator
    ) -> Iterator[Change]:
        pool = self.pool or ("both" if "both" in machines else "decode")
        if pool not in machines:
            raise UserError('pool = "prefill": there is no prefill pool; leave it out')
        own = machines[pool]
        number, there, width, what = (
            (self.gpu, own.num_gpus, 1, "gpu")
            if self.gpu is not None
            else (self.node, own.num_nodes, own.gpus_per_node, "node")
        )
        assert number is not None
        if number >= there:
            raise UserError(f"{what} = {number}: there are {there:,}, numbered from 0")
        replicas = own.list_replicas(number * width, width)
        found = [Change(self.at_s, pool, replicas, starts=False)]
        if self.restart_s is not None:
            found.append(Change(self.at_s + self.restart_s, pool, replicas, starts=True))
        return iter(found)
