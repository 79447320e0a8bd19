"""Shards on four simulated nodes: what tests on them share."""

import os
from contextlib import contextmanager

import numpy as np
import pytest
import ray

from simulator.base import plugins
from simulator.config.execution import ExecutionSpec
from simulator.runtime.nodes import connect
from simulator.runtime.ray_backend import RayBackend
from tests.runtime.equality import replicated, with_noise, with_placed
from tests.runtime.processes import descendants, is_untouched, left_of, stale_address

NUM_NODES = 4
TRANSPORTS = [kind for kind in plugins.available("runtime.transport") if kind != "in_process"]
EACH = [
    pytest.param(kind, marks=() if kind == "process_group" else pytest.mark.soak)
    for kind in TRANSPORTS
]
"""Transports to run a deployment over: that which runs use, and in soak each. What a transport must
do is held of each by ``tests/runtime/contract.py``."""
TIMEOUT_S = 5.0
"""Much longer than any exchange takes; a rank that hangs costs this."""


def of_ray(processes):
    """Those of a cluster: other tests of the same worker start browsers."""
    return {(pid, args) for pid, args in processes if "ray" in args}


@contextmanager
def open_nodes():
    """Four simulated nodes, of whose processes none is left."""
    before = descendants(os.getpid())
    with pytest.MonkeyPatch.context() as patch:
        # Of a simulated node, whatever machine runs this.
        patch.setattr("simulator.runtime.nodes.count_cores", lambda: 2)
        with stale_address() as common, connect(simulated_nodes=NUM_NODES) as found:
            assert is_untouched(common)  # other programs' way to their own cluster
            started = of_ray(descendants(os.getpid()) - before)
            yield found
            started |= of_ray(descendants(os.getpid()) - before)
    assert left_of(started) == set()  # though processes and a node were killed in between


def make_job(real, tiny):
    """Experts with copies on four nodes of one rank each."""
    plan = real.plan(
        {"num_experts": 8, "top_k": 2, "has_expert_bias": True},
        attention_dp=4,
        ep=4,
        dispatch={"kind": "per_rank"},
    )
    plan = tiny.on(plan, cluster=tiny.cluster(NUM_NODES, 1))
    plan = with_placed(
        plan, replicated(plan.placement.experts.placed, 8, 3, np.random.default_rng(0))
    )
    return with_noise(real.job(plan), real.folder)


def start(nodes, job, transport, faults=(), timeout_s=TIMEOUT_S):
    execution = ExecutionSpec(transport={"kind": transport}, timeout_s=timeout_s, faults=faults)
    backend = RayBackend(nodes, job.node_R, execution)
    backend.load(job)
    return backend


def processes(backend):
    """Process of each rank."""
    return [
        pid for pid, _ in ray.get([actor.process.remote() for actor in backend.actors.values()])
    ]


def homes(backend):
    """Node that each rank is on."""
    return ray.get(
        [
            actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
            for actor in backend.actors.values()
        ]
    )


def new_faults(backend, known):
    """Faults that were noted since, all of them recovered from."""
    found = backend.faults[known:]
    assert all(fault.recovery_s > 0 and fault.deployment == "tiny" for fault in found)
    return found


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
