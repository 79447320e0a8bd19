"""Parallel map over all cores: this process, and Ray's workers where Ray is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from simulator.base.errors import UserError
from simulator.base.progress import CountDone
from simulator.base.text import first_line
from simulator.base.trust import allow_as_sender, allowed_folder
from simulator.parallel.actors import call, end_actors, start_actors, wait_for
from simulator.parallel.cores import count_cores
from simulator.parallel.work_list import WorkList
from simulator.runtime.stopping import stop_on_signal

Item = TypeVar("Item")
Result = TypeVar("Result")

_Handed = deque[tuple[WorkList[Any, Any], int, Any]]
"""Items handed to a worker: the list, the item's place in it, and Ray's reference to the result."""
_UNSTARTED = "Ray did not start all processes, which takes longer"
_MANY = 2
"""Items left for each worker above which a worker is handed its next item before it has ended the
last, so that it never waits."""

_GLANCE_S = 1.0
"""Seconds between two checks that the Ray cluster is still there."""
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


class Workers:
    """Worker pool: processes that work through one list of items after another, this one and others
    that Ray starts.

    The others are started soon after the first list, while this process already works on it, and
    keep what they have loaded and filled from list to list. They are gone when the context ends,
    also after an error, Ctrl-C or SIGTERM.
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
        self._actors: list[Any] = []
        self._drivers: list[threading.Thread] = []

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
                    self._keep(work, place, function(items[place]))
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
                place = work.take(0)
                if place is not None:
                    return place
                self._changed.wait()

    def _tell_news(self) -> None:
        while self._news:
            warnings.warn(self._news.pop(0), RuntimeWarning, stacklevel=3)

    def _keep(self, work: WorkList[Any, Any], place: int, result: Any) -> None:
        with self._changed:
            work.keep(place, result)
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
                if self._is_closed:
                    return
                cpus = int(sum(nodes.alive.values()))
                self._start_workers(cpus - 1 if others is None else min(others, cpus))
                self._has_started.set()
                self._wait_for_end(nodes.head)
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

    def _wait_for_end(self, head: Any) -> None:
        """Wait until the workers are not needed any more, or their cluster is lost."""
        with self._changed:
            while not self._is_closed and head.lost is None:
                self._changed.wait(_GLANCE_S)
            if not self._is_closed:
                self._is_lost = True
                self._news.append(f"Ray was lost, and this process does the rest: {head.lost}")
                self._changed.notify_all()

    def _do_without(self, error: Exception) -> None:
        """Note that workers did not start, which is no error on this machine: a busy one may give
        Ray too little time.
        """
        self._news.append(f"{_UNSTARTED}: {first_line(error)}")

    def _start_workers(self, number: int) -> None:
        self._actors += start_actors(number)
        for place, one in enumerate(self._actors, 1):
            driver = threading.Thread(
                target=self._drive, args=(place, one), name=f"worker {place}", daemon=True
            )
            self._drivers.append(driver)
            driver.start()

    def _give_up(self) -> None:
        """End calls that still run, so that no thread waits for one when Ray stops."""
        if any(driver.is_alive() for driver in self._drivers):
            end_actors([] if self._is_lost else self._actors)
            for driver in self._drivers:
                driver.join()

    def _drive(self, number: int, actor: Any) -> None:
        """Hand one worker item after item, from list to list."""
        import ray

        handed: _Handed = deque()
        work: WorkList[Any, Any] | None = None
        try:
            if not self._greets(actor):
                return
            for work, place in self._for_worker(number, handed):
                if place is not None:
                    handed.append((work, place, None))
                    # Not once in Ray's store: who writes there after it is gone is ended by Ray.
                    task = actor.call.remote(work.function, work.items[place])
                    handed[-1] = (work, place, task)
                    continue
                work, place, task = handed[0]
                try:
                    self._keep(work, place, wait_for(task, lambda: self._is_lost))
                except ray.exceptions.RayTaskError as error:
                    self._fail(work, error.cause)
                handed.popleft()
        except (ray.exceptions.RayError, OSError):
            self._lose(number, handed)
        except BaseException as error:
            self._fail(work, error)

    def _lose(self, number: int, handed: _Handed) -> None:
        """Return a lost worker's items to the list; whoever is left does them, this process at
        last.
        """
        with self._changed:
            for work, place, _ in handed:
                work.give_back(place, number)
            if not self._is_closed and not self._is_lost:
                self._news.append("a process of Ray's was lost, and others do its work")
            self._changed.notify_all()

    def _greets(self, actor: Any) -> bool:
        """Wait until a worker has started, and say whether it has."""
        import ray

        try:
            actor.call.remote(allow_as_sender, allowed_folder())  # before its work comes
            wait_for(actor.call.remote(call, self._ready), lambda: self._is_lost)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            if self._is_lost:
                return False
            if self._address is None:
                self._do_without(error)
                return False
            why = f"a worker did not start: {first_line(error)}"
            raise UserError(f"--address {self._address}: {why}") from error
        return True

    def _for_worker(
        self, number: int, handed: _Handed
    ) -> Iterator[tuple[WorkList[Any, Any], int | None]]:
        """Yield the next items of one worker; without a place where it must first end what it was
        handed.
        """
        while True:
            with self._changed:
                place = None
                while not self._is_closed and not self._is_lost:
                    work = self._list
                    num_workers = 1 + len(self._actors)
                    if work is not None and work.error is None:
                        is_long = work.num_left >= _MANY * num_workers
                        place = work.take(number) if len(handed) < 1 + is_long else None
                    if place is not None or handed:
                        break
                    self._changed.wait()
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
