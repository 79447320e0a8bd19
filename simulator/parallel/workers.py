"""One function over many items, on all cores: this process and Ray's workers, where Ray is
installed, else here alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from simulator.base.errors import UserError
from simulator.base.progress import CountDone
from simulator.base.trust import allow_as_sender, allowed_folder
from simulator.parallel.work_list import WorkList
from simulator.runtime.stopping import stops_on_terminate

Item = TypeVar("Item")
Result = TypeVar("Result")

_MANY = 2
"""While so many items a worker are left, each is handed one before it has ended the one before, so
that it never waits."""

_STOPS_S = 60.0
"""Ray has stopped by then, or never will: what it started ends with this process."""
_SHORT_S = 0.3
"""Work that ends sooner is not worth starting others for."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    tick: CountDone = lambda _: None,
    workers: int | None = None,
    seen: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """The function's result for every item, in the items' order: :meth:`Workers.map` with workers
    that are gone afterwards.
    """
    with Workers(min(workers or num_cores(), len(items))) as crew:
        return crew.map(function, items, tick, seen)


def hired(workers: Workers | int | None) -> contextlib.AbstractContextManager[Workers]:
    """Workers that there are already, which stay, or so many new ones."""
    return contextlib.nullcontext(workers) if isinstance(workers, Workers) else Workers(workers)


class Workers:
    """Processes that work through one list of items after another: this one, and others that Ray
    starts.

    The others are started soon after the first list, while this process already works on it, and
    keep what they have loaded and filled from list to list. They are gone when the context ends,
    also after an error, Ctrl-C or SIGTERM.
    """

    _num_open: ClassVar[int] = 0
    """Of those that may have others: within a list no function starts more of them."""

    def __init__(
        self,
        count: int | None = None,
        address: str | None = None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is started.

        Args:
            count: of processes, this one included; by default one a core, or one a CPU of the
                cluster. 1 starts nothing.
            address: of a running Ray cluster (``host:port``), on all of whose nodes the others run,
                instead of on this machine.
            ready: called first in each of the others; what it raises is raised here.
        """
        self._count = count or (num_cores() if address is None else None)
        self._address = address
        self._ready = ready
        self._changed = threading.Condition()
        self._list: WorkList[Any, Any] | None = None
        self._seen_groups: dict[Hashable, set[int]] = {}
        self._is_closed = False
        self._error: BaseException | None = None
        self._unstarted = ""
        """Why others did not start that this process can do without; told once."""
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
        self._signals.enter_context(stops_on_terminate())
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
        """Stop what was started. A call that still runs is given up."""
        self.dismiss()
        try:
            # A thread that still imports Ray has started nothing. It may do so for ever: an
            # interrupt that comes while this thread waits for the lock on imports leaves that
            # taken.
            if self._starter is not None and (self._is_starting or raised is None):
                self._starter.join(_STOPS_S)
        finally:
            self._signals.close()
            Workers._num_open -= self._is_open

    def dismiss(self) -> None:
        """Let the others end while this process goes on alone; the end of the context waits for
        that.
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
        """The function's result for every item, in the items' order. What the function raises is
        raised here.

        Args:
            function: can be pickled, as items and results can.
            tick: told how many items are done; between two items of this process.
            seen: given each result as it comes, before ``tick`` counts it.
            group: items of one group share what a process loads and fills, so the same process gets
                them as long as others have items of their own.
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
                self._tell_unstarted()
                place = self._next_here(work)
                if place is not None:
                    self._keep(work, place, function(items[place]))
                fresh = work.fresh()
                for result in fresh:
                    seen(result)
                told += len(fresh)
                if fresh:
                    tick(told)
        finally:
            with self._changed:
                self._list = None
        return [work.results[place] for place in range(len(items))]

    def _next_here(self, work: WorkList[Any, Any]) -> int | None:
        """An item for this process; ``None`` where others have ended some, or this waited until
        they had.
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

    def _tell_unstarted(self) -> None:
        why, self._unstarted = self._unstarted, ""
        if why:
            warnings.warn(
                f"Ray did not start all processes, which takes longer: {why}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _keep(self, work: WorkList[Any, Any], place: int, result: Any) -> None:
        with self._changed:
            work.keep(place, result)
            self._changed.notify_all()

    def _start(self) -> None:
        self._starter = threading.Thread(target=self._others, name="starts workers", daemon=True)
        self._starter.start()

    def _others(self) -> None:
        """Start the others, and stop them in the end: all in one thread, with which the processes
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
                self._hire(cpus - 1 if others is None else min(others, cpus))
                self._has_started.set()
                with self._changed:
                    while not self._is_closed:
                        self._changed.wait()
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
            else:
                self._fail(None, error)
        finally:
            self._has_started.set()

    def _do_without(self, error: Exception) -> None:
        """On this machine it is no error that others do not start: a machine with much to do may
        give Ray too little time.
        """
        self._unstarted = (str(error).strip().splitlines() or [type(error).__name__])[0]

    def _hire(self, number: int) -> None:
        import ray

        actor = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(_Worker)
        self._actors += [actor.remote() for _ in range(number)]
        for place, one in enumerate(self._actors, 1):
            driver = threading.Thread(
                target=self._drive, args=(place, one), name=f"worker {place}", daemon=True
            )
            self._drivers.append(driver)
            driver.start()

    def _give_up(self) -> None:
        """End calls that still run, so that no thread waits for one when Ray stops."""
        if not any(driver.is_alive() for driver in self._drivers):
            return
        import ray

        for actor in self._actors:
            ray.kill(actor)
        for driver in self._drivers:
            driver.join()

    def _drive(self, number: int, actor: Any) -> None:
        """Hand one worker item after item, from list to list."""
        import ray

        handed: deque[tuple[WorkList[Any, Any], int, Any]] = deque()
        work: WorkList[Any, Any] | None = None
        try:
            if not self._greets(actor):
                return
            for work, place in self._for_worker(number, handed):
                if place is not None:
                    handed.append(
                        (work, place, actor.call.remote(work.shared(ray.put), work.items[place]))
                    )
                    continue
                work, place, task = handed.popleft()
                try:
                    self._keep(work, place, ray.get(task))
                except ray.exceptions.RayTaskError as error:
                    self._fail(work, error.cause)
        except BaseException as error:  # the worker is gone
            self._fail(work, error)

    def _greets(self, actor: Any) -> bool:
        """Wait until a worker has started, and say whether it has."""
        import ray

        try:
            actor.call.remote(allow_as_sender, allowed_folder())  # before its work comes
            ray.get(actor.call.remote(_called, self._ready))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            if self._address is None:
                self._do_without(error)
                return False
            raise UserError(
                f"--address {self._address}: a worker did not "
                f"start: {str(error).strip().splitlines()[0]}"
            ) from error
        return True

    def _for_worker(
        self, number: int, handed: deque[tuple[WorkList[Any, Any], int, Any]]
    ) -> Iterator[tuple[WorkList[Any, Any], int | None]]:
        """What one worker gets next; without a place where it is to end first what it was
        handed.
        """
        while True:
            with self._changed:
                place = None
                while not self._is_closed:
                    work = self._list
                    wants = len(handed) < (
                        2
                        if work is not None and work.num_left >= _MANY * (1 + len(self._actors))
                        else 1
                    )
                    place = (
                        work.take(number)
                        if work is not None and wants and work.error is None
                        else None
                    )
                    if place is not None or handed:
                        break
                    self._changed.wait()
                if self._is_closed:
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
    """Whether this process is a worker of Ray already, or the one that started it: workers' cores
    are taken.
    """
    if Workers._num_open:
        return True
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


def _called(function: Callable[[], None]) -> None:
    function()


class _Worker:
    """What runs in a process that Ray starts."""

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        """One item."""
        return function(item)
