"""Replicas that stop and start as a test writes it down, or as a seed has it."""

import dataclasses

import numpy as np

from simulator.policies.failures import Change


@dataclasses.dataclass(frozen=True)
class Script:
    """Changes as they are written down."""

    script: tuple[Change, ...]

    def changes(self, machines, rng):
        return iter(self.script)


Script.__module__ = "simulator.tests"  # as if it were shipped: not held to its contract


def with_changes(plan, *changes):
    return dataclasses.replace(plan, failures=(Script(tuple(changes)),))


def check_all_is_given_back(pool):
    """Nothing waits, runs or holds a block any more."""
    caches, counts = pool.ranks.caches, pool.ranks.counts
    free = caches.free_blocks + caches.num_full + caches.num_evictable * pool.limits.prefix_blocks
    assert (free == caches.capacity_blocks).all()
    for kind in ("num_running", "num_reserved", "num_bereft"):
        assert not pool.ranks.each[kind].any()
    for queue in ("waiting", "ready", "line"):
        assert not pool.ranks.each[queue]["count"].any()
    assert not counts.outstanding_tokens.any()
    assert (counts.num_pushed == counts.num_finished).all()


def draw_changes(plan, seed, span_s):
    """Replicas of either pool stop, and some of them start again."""
    rng = np.random.default_rng([seed, 7])
    found = []
    for pool, machines in plan.machines.items():
        for _ in range(int(rng.integers(1, 4))):
            count = int(rng.integers(1, machines.num_replicas + 1))
            replicas = tuple(sorted(rng.choice(machines.num_replicas, count, False).tolist()))
            at_s = float(rng.uniform(0, span_s))
            found.append(Change(at_s, pool, replicas, starts=False))
            if rng.random() < 0.6:
                later_s = at_s + float(rng.uniform(0, span_s / 2))
                found.append(Change(later_s, pool, replicas, starts=True))
    return sorted(found)
