"""Shard in a process of its own, which begins by importing PyTorch: to look for garbage in what
imports make took a fifth of its start, and later a tenth of a second now and then, in a step that
is measured.
"""

from simulator.base.machine import hold_imports

with hold_imports("torch"):
    from simulator.runtime.shard import Shard


class ShardProcess(Shard):
    """Shard that Ray starts a process for, which has nothing else to do."""
