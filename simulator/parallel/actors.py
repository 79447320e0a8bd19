"""Ray processes that call functions for this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

_GLANCE_S = 1.0
"""Seconds that a thread waits for an answer before it checks that one can still come."""


def start_actor(node: str) -> Any:
    """Start a process with a CPU of a node; it may still be starting on return."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy=place)(_Actor).remote()


def end_actors(actors: Iterable[Any]) -> None:
    """End processes, whatever they are doing."""
    import ray

    for actor in actors:
        ray.kill(actor)


def wait_for(task: Any, is_lost: Callable[[], bool]) -> Any:
    """Wait for the result of a call in a Ray process.

    Args:
        is_lost: whether all that it runs on is gone, which a call that waits may not notice.

    Raises:
        RayError, OSError: if it is gone.
    """
    import ray

    while not ray.wait([task], timeout=_GLANCE_S)[0]:
        if is_lost():
            raise ConnectionError("what it ran on is gone")
    return ray.get(task)


def call(function: Callable[[], None]) -> None:
    """Call a function without arguments, in place of one that takes an item."""
    function()


class _Actor:
    """Body of a process that Ray starts."""

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Call a function on one item."""
        return function(item)
