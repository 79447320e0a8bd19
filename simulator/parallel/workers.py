"""Parallel map over all cores: this process, and Ray's workers where Ray is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from simulator.base.errors import UserError
from simulator.base.machine import count_cores
from simulator.base.progress import CountDone
from simulator.base.text import first_line
from simulator.parallel.work_list import Taker, WorkList
from simulator.runtime.stopping import stop_on_signal

if TYPE_CHECKING:  # it imports Ray
    from simulator.runtime.nodes import Nodes

Item = TypeVar("Item")
Result = TypeVar("Result")

_Handed = deque[tuple[WorkList[Any, Any], int, Any]]
"""Items handed to a worker: the list, the item's place in it, and Ray's reference to the result."""
_UNSTARTED = "Ray did not start all processes, which takes longer"
_MANY = 2
"""Items left for each worker above which a worker is handed its next item before it has ended the
last, so that it never waits."""

_GLANCE_S = 1.0
"""Seconds between two looks at the Ray cluster, its nodes, slow workers, and whether an
answer can still come."""
_HERE = Taker(0)
"""Taker that this process is."""
_STOPS_S = 60.0
"""Seconds within which Ray stops, or never will; afterwards its processes end with this one."""
_SHORT_S = 0.3
"""Seconds of work below which starting workers does not pay."""


def sweep(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    tick: CountDone = lambda _: None,
    workers: int | None = None,
    seen: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Map the function over all items, in their order: :meth:`Workers.map` with a worker pool of
    its own.
    """
    with Workers(min(workers or count_cores(), len(items))) as pool:
        return pool.map(function, items, tick, seen)


def use_workers(workers: Workers | int | None) -> contextlib.AbstractContextManager[Workers]:
    """Use a worker pool that exists and stays open, or open one of so many processes."""
    return contextlib.nullcontext(workers) if isinstance(workers, Workers) else Workers(workers)


@dataclass
class _Worker:
    """Another process of the pool."""

    taker: Taker
    actor: Any
    thread: threading.Thread | None = None
    """Hands it its items, until the pool is closed or it is lost."""
    handed: _Handed = field(default_factory=deque)

    @property
    def is_lost(self) -> bool:
        return self.thread is not None and not self.thread.is_alive()


class Workers:
    """Worker pool: processes that work through one list of items after another, this one and others
    that Ray starts.

    The others are started soon after the first list, while this process already works on it, and
    keep what they have loaded and filled from list to list. They are gone when the context ends,
    also after an error, Ctrl-C or SIGTERM.

    A process that is lost is replaced, and a node that joins the cluster gets processes too. What a
    lost one had begun is begun once more, and what one is slow with at the end also on another
    node. No result depends on any of it, as long as the function's depend on its item only.
    """

    _num_open: ClassVar[int] = 0
    """Open pools that may have Ray processes: within a list no function starts more of them."""

    def __init__(
        self,
        count: int | None = None,
        address: str | None = None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare the pool; nothing is started yet.

        Args:
            count: processes, this one included; by default one for each core, or one for each CPU
                of the cluster. 1 starts nothing.
            address: address of a running Ray cluster (``host:port``), on all of whose nodes the
                others run, instead of on this machine.
            ready: called first in each of the others; what it raises is raised here.
        """
        self._count = count or (count_cores() if address is None else None)
        self._address = address
        self._ready = ready
        self._changed = threading.Condition()
        self._list: WorkList[Any, Any] | None = None
        self._seen_groups: dict[Hashable, set[int]] = {}
        self._is_closed = False
        self._error: BaseException | None = None
        self._news: list[str] = []
        """Warnings about lost workers that this process can do without; each is shown once."""
        self._is_lost = False
        """Whether the Ray cluster is lost, and all workers with it."""
        self._is_open = self._has_others()
        self._signals = contextlib.ExitStack()
        self._starter: threading.Thread | None = None
        self._is_starting = False
        """Whether there may be processes that must be stopped."""
        self._has_started = threading.Event()
        self._workers: list[_Worker] = []
        self._greet: Callable[[], None] = lambda: None
        """Called before :attr:`_ready`, which may rest on what it does."""
        self._num_started = 0
        self._barred: set[str] = set()
        """Nodes on which a worker did not start."""

    def _has_others(self) -> bool:
        return self._count != 1 and importlib.util.find_spec("ray") is not None and not _is_on_ray()

    def __enter__(self) -> Workers:
        """Join the cluster, if one is named.

        Raises:
            UserError: if it cannot be joined.
        """
        Workers._num_open += self._is_open
        self._signals.enter_context(stop_on_signal())
        if self._address is not None and self._is_open:
            try:
                self._start()
                self._has_started.wait()
                if self._error is not None:
                    raise self._error
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
        return self

    def __exit__(self, raised: object = None, *_: object) -> None:
        """Stop the processes that were started. A call that still runs is given up."""
        self.shut_down()
        try:
            # A thread that still imports Ray has started nothing. It may do so for ever: an
            # interrupt that comes while this thread waits for the lock on imports leaves that
            # taken.
            if self._starter is not None and (self._is_starting or raised is None):
                self._starter.join(_STOPS_S)
        finally:
            self._signals.close()
            Workers._num_open -= self._is_open

    def shut_down(self) -> None:
        """Let the workers end while this process goes on alone; the end of the context waits for
        them.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        tick: CountDone = lambda _: None,
        seen: Callable[[Result], None] = lambda _: None,
        group: Callable[[Item], Hashable] = lambda _: None,
        weight: Callable[[Item], float] = lambda _: 1.0,
    ) -> list[Result]:
        """Map the function over all items and return the results in the items' order. An exception
        of the function is raised here.

        Args:
            function: picklable, as items and results are.
            tick: called with the number of items done, between two items of this process.
            seen: called with each result as it comes, before ``tick`` counts it.
            group: key of items that share what a process loads and caches, so that the same process
                gets them as long as others have items of their own.
            weight: roughly how long an item takes, in any unit; the longest are begun first.
        """
        work = WorkList(function, items, group, weight, self._seen_groups)
        if self._is_open and len(items) > 1 and self._starter is None and not self._is_closed:
            self._start()
        with self._changed:
            self._list = work
            self._changed.notify_all()
        try:
            told = 0
            while told < len(items):
                self._tell_news()
                place = self._next_here(work)
                if place is not None:
                    self._keep(work, place, function(items[place]), _HERE)
                fresh = work.fresh()
                for result in fresh:
                    seen(result)
                told += len(fresh)
                if fresh:
                    tick(told)
            self._tell_news()  # this process may have ended the last item itself, for a lost worker
        finally:
            with self._changed:
                self._list = None
        return [work.results[place] for place in range(len(items))]

    def _next_here(self, work: WorkList[Any, Any]) -> int | None:
        """Take an item for this process; ``None`` where others have ended some, also after waiting
        for them.
        """
        with self._changed:
            while True:
                error = work.error or self._error
                if error is not None:
                    raise error
                if work.has_fresh:
                    return None
                place = work.take(_HERE)
                if place is not None:
                    return place
                self._changed.wait()

    def _tell_news(self) -> None:
        while self._news:
            warnings.warn(self._news.pop(0), RuntimeWarning, stacklevel=3)

    def _keep(self, work: WorkList[Any, Any], place: int, result: Any, taker: Taker) -> None:
        with self._changed:
            work.keep(place, result, taker)
            self._changed.notify_all()

    def _start(self) -> None:
        self._starter = threading.Thread(target=self._others, name="starts workers", daemon=True)
        self._starter.start()

    def _others(self) -> None:
        """Start the workers, and stop them in the end: all in one thread, with which the processes
        that it started would die.
        """
        if self._address is None:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, _SHORT_S)
                if self._is_closed:
                    return
        try:
            from simulator.runtime.nodes import connect

            with self._changed:
                if self._is_closed:
                    return
                self._is_starting = True
            others = None if self._count is None else self._count - 1
            with connect(address=self._address, cores=others) as nodes:
                self._greet = nodes.sender.greet
                if self._is_closed:
                    return
                self._fill(nodes)
                self._has_started.set()
                self._wait_for_end(nodes)
                self._give_up()
        except (
            BaseException
        ) as error:  # whatever it is, the main thread raises it, or goes on alone
            if (
                self._address is None
                and isinstance(error, Exception)
                and not self._has_started.is_set()
            ):
                self._do_without(error)
            elif not self._is_lost:
                self._fail(None, error)
        finally:
            self._has_started.set()

    def _wait_for_end(self, nodes: Nodes) -> None:
        """Wait until the workers are not needed any more, or their cluster is lost; meanwhile,
        replace those that are lost, and use nodes that join.
        """
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, _GLANCE_S):
                    return
            if lost := nodes.find_loss():
                with self._changed:
                    self._is_lost = True
                    self._news.append(f"Ray was lost, and this process does the rest: {lost}")
                    self._changed.notify_all()
                return
            if self._address is not None or any(one.is_lost for one in self._workers):
                self._fill(nodes)

    def _do_without(self, error: Exception) -> None:
        """Note that workers did not start, which is no error on this machine: a busy one may give
        Ray too little time.
        """
        self._news.append(f"{_UNSTARTED}: {first_line(error)}")

    def _fill(self, nodes: Nodes) -> None:
        """Start a worker on each CPU that has none, up to their number; on a cluster this process
        takes one of its node's.
        """
        free = {node: int(cpus) for node, cpus in nodes.alive.items() if node not in self._barred}
        if self._address is not None and nodes.own in free:
            free[nodes.own] -= 1
        self._workers = [one for one in self._workers if not one.is_lost]
        for one in self._workers:
            if one.taker.node in free:
                free[one.taker.node] -= 1
        room = math.inf if self._count is None else self._count - 1 - len(self._workers)
        while free and room > 0 and max(free.values()) > 0:
            node = max(free, key=lambda name: free[name])
            free[node] -= 1
            room -= 1
            self._start_worker(node)

    def _start_worker(self, node: str) -> None:
        self._num_started += 1
        worker = _Worker(Taker(self._num_started, node), start_actor(node))
        worker.thread = threading.Thread(
            target=self._drive,
            args=(worker, self._has_started.is_set()),
            name=f"worker {self._num_started}",
            daemon=True,
        )
        self._workers.append(worker)
        worker.thread.start()

    def _give_up(self) -> None:
        """End calls that still run, so that no thread waits for one when Ray stops."""
        threads = [one.thread for one in self._workers if one.thread is not None]
        if any(thread.is_alive() for thread in threads):
            end_actors([] if self._is_lost else [one.actor for one in self._workers])
            for thread in threads:
                thread.join()

    def _drive(self, worker: _Worker, is_late: bool) -> None:
        """Hand one worker item after item, from list to list.

        Args:
            is_late: whether the first workers have been started before.
        """
        import ray

        handed, actor = worker.handed, worker.actor
        work: WorkList[Any, Any] | None = None
        try:
            if not self._greets(worker, is_late):
                return
            for work, place in self._for_worker(worker):
                if place is not None:
                    handed.append((work, place, None))
                    # Not once in Ray's store: who writes there after it is gone is ended by Ray.
                    task = actor.call.remote(work.function, work.items[place])
                    handed[-1] = (work, place, task)
                    continue
                work, place, task = handed[0]
                try:
                    self._keep(work, place, wait_for(task, lambda: self._is_lost), worker.taker)
                except ray.exceptions.RayTaskError as error:
                    if place not in work.results:
                        self._fail(work, error.cause)
                handed.popleft()
        except (ray.exceptions.RayError, OSError) as error:
            self._lose(worker, error)
        except BaseException as error:
            self._fail(work, error)
        finally:
            if not self._is_closed and not self._is_lost:
                end_actors([actor])

    def _lose(self, worker: _Worker, error: Exception) -> None:
        """Return a lost worker's items to the list; whoever is left does them, this process at
        last.
        """
        with self._changed:
            for number, (work, place, _) in enumerate(worker.handed):
                was_begun = number == 0 and not self._is_lost
                work.give_back(place, worker.taker, first_line(error), was_begun=was_begun)
            if not self._is_closed and not self._is_lost:
                self._news.append("a process of Ray's was lost, and others do its work")
            self._changed.notify_all()

    def _greets(self, worker: _Worker, is_late: bool) -> bool:
        """Wait until a worker has started, and say whether it has."""
        import ray

        try:
            for prepare in (self._greet, self._ready):  # before its work comes
                wait_for(worker.actor.call.remote(call, prepare), lambda: self._is_lost)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if not isinstance(cause, ray.exceptions.RayError | ImportError):
                self._fail(None, cause)
                return False
            if self._is_lost or self._is_closed:
                return False
            self._barred.add(worker.taker.node)
            if self._address is None or is_late:
                self._do_without(cause)
                return False
            why = f"a worker did not start: {first_line(cause)}"
            raise UserError(f"--address {self._address}: {why}") from error
        return True

    def _for_worker(self, worker: _Worker) -> Iterator[tuple[WorkList[Any, Any], int | None]]:
        """Yield the next items of one worker; without a place where it must first end what it was
        handed.
        """
        taker, handed = worker.taker, worker.handed
        while True:
            with self._changed:
                place = None
                while not self._is_closed and not self._is_lost:
                    work = self._list
                    num_workers = 1 + len(self._workers)
                    if work is not None and work.error is None:
                        is_long = work.num_left >= _MANY * num_workers
                        place = work.take(taker) if len(handed) < 1 + is_long else None
                        if place is None and not handed:
                            place = work.take_again(taker)
                    if place is not None or handed:
                        break
                    self._changed.wait(_GLANCE_S)
                if self._is_closed or (self._is_lost and not handed):
                    return
                work = work if place is not None else handed[0][0]
            if work is not None:
                yield work, place

    def _fail(self, work: WorkList[Any, Any] | None, error: BaseException) -> None:
        with self._changed:
            if self._is_closed:
                return
            if work is None:
                self._error = error
            else:
                work.error = work.error or error
            self._changed.notify_all()


def _is_on_ray() -> bool:
    """Whether this process is a worker of Ray already, or started Ray itself: the workers' cores
    are taken.
    """
    if Workers._num_open:
        return True
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


# Ray processes that call functions for this one.


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
