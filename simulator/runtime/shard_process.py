"""Shard in a process of its own."""

from simulator.base.garbage import hold_imports

with hold_imports():
    from simulator.runtime.shard import Shard


class ShardProcess(Shard):
    """Shard that Ray starts a process for, which has nothing else to do."""
