"""One function over many items, on all cores: Ray's workers where Ray is installed and there is more than one core, else here."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_QUEUED_PER_WORKER = 2
"""Tasks that wait behind the one that runs, so that no worker idles and no result waits long."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    tick: Callable[[int], None] = lambda _: None,
    workers: int | None = None,
    seen: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """The function's result for every item, in the items' order.

    Workers are processes of their own, which are started here and gone when this returns, also after an error, Ctrl-C or SIGTERM.
    What the function raises is raised here.

    Args:
        function: can be pickled, as items and results can.
        tick: told how many items are done.
        workers: how many processes, by default one a core; 1 runs in this process.
        seen: given each result as it comes, before ``tick`` counts it.
    """
    wanted = min(workers or num_cores(), len(items))
    if wanted > 1 and importlib.util.find_spec("ray") is not None and not _is_on_ray():
        return _on_ray(function, items, tick, wanted, seen)
    found = []
    for item in items:
        found.append(function(item))
        seen(found[-1])
        tick(len(found))
    return found


def _is_on_ray() -> bool:
    """Whether this process is a worker of Ray already, or the one that started it: workers' cores are taken."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _on_ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    tick: Callable[[int], None],
    workers: int,
    seen: Callable[[Result], None],
) -> list[Result]:
    import ray

    from simulator.runtime.nodes import connect

    found: dict[int, Result] = {}
    running: dict[Any, int] = {}
    with connect(cores=workers):
        remote = ray.remote(max_retries=0)(_call)
        shared = ray.put(function)
        for place, item in enumerate(items):
            if len(running) >= workers * (1 + _QUEUED_PER_WORKER):
                _collect(running, found, tick, seen)
            running[remote.remote(shared, item)] = place
        while running:
            _collect(running, found, tick, seen)
    return [found[place] for place in range(len(items))]


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _collect(running: dict[Any, int], found: dict[int, Any], tick: Callable[[int], None], seen: Callable[[Any], None]) -> None:
    """Wait for a task to end, and take its result."""
    import ray

    ended, _ = ray.wait(list(running))
    for task in ended:
        try:
            place = running.pop(task)
            found[place] = ray.get(task)
            seen(found[place])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
    tick(len(found))
