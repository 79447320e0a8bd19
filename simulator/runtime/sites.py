"""Sites where shards run: threads of this process, or actors on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from numpy.typing import NDArray

from simulator.config.execution import ExecutionSpec
from simulator.deployment.plan import DeploymentPlan
from simulator.runtime.backend import Backend, Site
from simulator.runtime.in_process import InProcessBackend


class _Threads:
    """Threads of this process."""

    description = "threads of one process"

    def start(self, node_R: NDArray[np.int64], execution: ExecutionSpec) -> Backend:
        return InProcessBackend(len(node_R), execution.timeout_s)

    def fits(self, backend: Backend, plan: DeploymentPlan) -> bool:
        assert isinstance(backend, InProcessBackend)
        return len(backend.shards) == plan.placement.layout.num_ranks


@contextmanager
def _open_threads() -> Iterator[Site]:
    yield _Threads()


@contextmanager
def _open_ray(simulated_nodes: int | None, address: str | None) -> Iterator[Site]:
    from simulator.runtime.nodes import connect
    from simulator.runtime.ray_backend import RaySite

    with connect(simulated_nodes, address) as nodes:
        yield RaySite(nodes)


def open_site(
    kind: str, simulated_nodes: int | None, address: str | None
) -> AbstractContextManager[Site]:
    """Open a site for shards: ``ray`` (actors, on this machine or a cluster) or ``in_process``.

    Raises:
        UserError: on entering, if a cluster cannot be joined.
        LostError: if it is gone before the context ends.
    """
    if kind == "in_process":
        return _open_threads()
    return _open_ray(simulated_nodes, address)
