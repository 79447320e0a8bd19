"""Failures of GPUs at random, by a rate for each hour that a GPU works."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping

import numpy as np

from simulator.base.quantities import Hours, Seconds
from simulator.config.failures import FailureShares
from simulator.policies.failures import Change, Machines

_HOUR_S = 3600.0


class Random(FailureShares):
    """GPUs that fail independently of each other, each at the same rate, and are repaired after a
    fixed time. Another seed draws other failures.

    Published rates of interrupted jobs differ by six: 8,100 GPU-hours between two (a job of 1,024
    A100 every 7.9 h), 29,500 (6.5 failures of a thousand 8-GPU nodes a day: both in "Revisiting
    Reliability in Large-Scale Machine Learning Research Clusters", arXiv:2410.21680), and 50,700
    (419 unexpected interruptions in 54 days of Llama 3's training on 16,384 H100,
    arXiv:2407.21783). Run with both ends.
    """

    mtbf_gpu_hours: Hours = 30_000.0
    """Mean hours that a GPU works between two failures. Failures of nodes count as well, once."""
    repair_s: Seconds = 3600.0
    """Seconds from a failure until the GPU, or a spare in its place, works again. Assumed: an hour,
    for a replacement from a pool of spare machines."""

    def changes(
        self, machines: Mapping[str, Machines], rng: np.random.Generator
    ) -> Iterator[Change]:
        works = {(name, gpu) for name, one in machines.items() for gpu in range(one.num_gpus)}
        repairs: list[Change] = []
        now_s = 0.0
        while True:
            # Whatever has happened, the time to the next failure is exponential anew.
            alone_s = rng.exponential(self.mtbf_gpu_hours * _HOUR_S)
            fails_s = now_s + alone_s / len(works) if works else math.inf
            if repairs and repairs[0].at_s <= fails_s:
                repair = heapq.heappop(repairs)
                works |= {(repair.pool, gpu) for gpu in repair.gpus}
                now_s = repair.at_s
                yield repair
                continue
            now_s = fails_s
            name, gpu = sorted(works)[rng.integers(len(works))]
            drawn = rng.random()
            hit: dict[str, tuple[int, ...]] = {name: (gpu,)}
            if drawn < self.node_share:
                hit = _find_hit(machines, name, gpu, 1)
            elif drawn < self.node_share + self.switch_share:
                hit = _find_hit(machines, name, gpu, self.nodes_per_switch)
            for pool, gpus in hit.items():
                left = tuple(one for one in gpus if (pool, one) in works)
                if left:
                    change = Change(now_s, pool, machines[pool].find_replicas(left), False, left)
                    repair = change._replace(at_s=now_s + self.repair_s, starts=True)
                    heapq.heappush(repairs, repair)
                    works -= {(pool, one) for one in left}
                    yield change


def _find_hit(
    machines: Mapping[str, Machines], pool: str, gpu: int, num_nodes: int
) -> dict[str, tuple[int, ...]]:
    """GPUs of each pool on the node of a GPU, or on all nodes under its switch."""
    own = machines[pool]
    first = (own.first_gpu + gpu) // own.gpus_per_node // num_nodes * num_nodes
    found = {
        name: tuple(gpu for node in range(first, first + num_nodes) for gpu in one.list_gpus(node))
        for name, one in machines.items()
        if one.cluster == own.cluster
    }
    return {name: gpus for name, gpus in found.items() if gpus}
