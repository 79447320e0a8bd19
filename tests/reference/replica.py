"""One replica: its requests, its ranks and its clock; and how the SimPy fidelities run its steps
one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.engine import by_ranks
from simulator.engine.batching import complete_step, form_step, push
from simulator.engine.start import start_ranks
from simulator.engine.state import Limits, Requests
from simulator.engine.step_log import LOG_COLUMNS, NUM_COLUMNS, observe
from simulator.engine.step_price import price_step
from simulator.engine.table import StepTable
from tests.reference.fast import advance, leap, start_clock

_LOG_ROWS = 8192


class Replica:
    """State of one replica, and the log of its steps."""

    def __init__(
        self,
        requests: Requests,
        limits: Limits,
        num_dp: int,
        capacity_blocks: int,
        num_prefixes: int,
        num_lanes: int = 1,
        number: int = 0,
    ) -> None:
        """Nothing has come.

        Args:
            number: among the replicas of its pool.
            num_dp: attention data-parallel ranks.
            capacity_blocks: of each of them.
            num_lanes: batches of each that a pipeline keeps in flight.
        """
        self.number = number
        self.requests = requests
        self.limits = limits
        num_batches = num_dp * num_lanes
        self.ranks = start_ranks(
            num_batches,
            limits.rules.max_sequences,
            capacity_blocks,
            num_prefixes,
            num_lanes,
            limits.rules.output_share,
        )
        self.clock = start_clock()
        self.queue = np.zeros(len(requests.arrival_s), dtype=np.int64)
        self.num_queued = 0
        self._position = 0
        self._way_s = 0.0
        self._coming_tokens = 0
        self._logs: list[NDArray[np.float64]] = []
        self._log = np.empty((_LOG_ROWS, NUM_COLUMNS))
        self._rows = 0
        self._before = np.zeros(num_batches * limits.rules.max_sequences, dtype=np.int64)

    @property
    def outstanding(self) -> int:
        """Requests that it has and has not finished, those on their way included."""
        return (
            int(self.clock.num_pushed[0] - self.clock.num_finished[0])
            + self.num_queued
            - self._position
        )

    @property
    def outstanding_tokens(self) -> int:
        """Prompt and output tokens of these requests."""
        return int(self.clock.outstanding_tokens[0]) + self._coming_tokens

    def assign(self, request: int) -> None:
        """Send it a request, which it takes at the request's arrival. Requests come in order of
        arrival.
        """
        self.queue[self.num_queued] = request
        self.num_queued += 1
        self._coming_tokens += int(
            self.requests.num_input[request] + self.requests.num_output[request]
        )

    def assign_loop(self, concurrency: int, way_s: float = 0.0) -> None:
        """Send it all requests as a closed loop: ``concurrency`` at once, the others when one ends;
        ``way_s`` later they are here.
        """
        self._way_s = way_s
        for request in range(len(self.queue)):
            self.requests.arrival_s[request] = way_s if request < concurrency else np.inf
            self.assign(request)

    def take(self) -> None:
        """Queue the requests that have come since the last look at its ranks, if it is time to
        look.
        """
        is_idle = self.clock.num_pushed[0] == self.clock.num_finished[0]
        if not is_idle and self.clock.num_steps[0] % self.limits.rules.poll_steps:
            return
        for request in self.queue[self._position : self.num_queued]:
            push(self.requests, self.ranks, self.clock, request)
        self._have_come(self.num_queued)

    def _have_come(self, position: int) -> None:
        """Requests of the queue before ``position`` are at the ranks."""
        come = self.queue[self._position : position]
        self._coming_tokens -= int(
            self.requests.num_input[come].sum() + self.requests.num_output[come].sum()
        )
        self._position = position

    def advance(
        self, table: StepTable, until_s: float, tick: Callable[[], None], concurrency: int = 0
    ) -> None:
        """Run steps in compiled code until ``until_s``; ``tick`` is called now and then.

        Args:
            concurrency: above 0, a closed loop of all requests assigned so far.
        """
        while True:
            room = self._log[self._rows :]
            queue = self.queue[: self.num_queued]
            position, rows = advance(
                self.requests,
                self.ranks,
                self.limits,
                self.clock,
                table,
                queue,
                self._position,
                until_s,
                room,
                concurrency,
                self._way_s,
            )
            self._have_come(position)
            self._rows += rows
            tick()
            if rows < len(room):
                return
            self._logs.append(self._log)
            self._log, self._rows = np.empty_like(self._log), 0

    def log(self) -> NDArray[np.float64]:
        """Rows of all steps so far, ``[steps, LOG_COLUMNS]``."""
        return np.concatenate([*self._logs, self._log[: self._rows]])[:, : len(LOG_COLUMNS)]

    def run(
        self,
        env: simpy.Environment,
        execute: Execute,
        wake: list[Event],
        on_finish: Callable[[NDArray[np.int64]], None],
    ) -> ProcessGenerator:
        """The SimPy process of the replica: step after step, asleep while there is nothing to do.

        Args:
            wake: its first entry is an event that succeeds when a request has been assigned;
                replaced after each sleep.
            on_finish: called with the requests that a step finished.
        """
        while True:
            if self.outstanding == 0:
                yield wake[0]
                wake[0] = env.event()
                continue
            self.take()
            if isinstance(execute, ByTable) and self._position == self.num_queued:
                rows, num_before = self._leap(execute.table, env)
                if rows:
                    self._logs.append(self._log[:rows].copy())
                if num_before >= 0:
                    yield env.timeout(self.clock.now_s[0] - env.now)
                    if num_before:
                        on_finish(self._finished_of(self._before[:num_before]))
                    continue
                row = self._log[rows].copy()
                yield env.timeout(row[0] + row[1] - env.now)
            else:
                if not form_step(self.requests, self.ranks, self.limits, env.now):
                    raise RuntimeError(
                        "requests wait, but none can run: the KV cache is smaller than one of them"
                    )
                row = np.zeros(NUM_COLUMNS)
                row[0] = env.now
                observe(self.requests, self.ranks, self.limits, row)
                yield from execute(env, self, row[: len(LOG_COLUMNS)])
            self._logs.append(row[None, :])
            self.clock.now_s[0] = env.now
            self.clock.num_steps[0] += 1
            running = np.concatenate(
                [row[:n] for row, n in zip(self.ranks.running, self.ranks.num_running, strict=True)]
            )
            if complete_step(self.requests, self.ranks, self.limits, self.clock, env.now):
                on_finish(self._finished_of(running))

    def _leap(self, table: StepTable, env: simpy.Environment) -> tuple[int, int]:
        """Run the steps that end before anything else happens anywhere: nothing can be sent here
        meanwhile.
        """
        self.clock.now_s[0] = env.now
        rows, num_before = leap(
            self.requests,
            self.ranks,
            self.limits,
            self.clock,
            table,
            env.peek(),
            self._log,
            self._before,
        )
        return int(rows), int(num_before)

    def _finished_of(self, running: NDArray[np.int64]) -> NDArray[np.int64]:
        return running[~np.isnan(self.requests.finish_s[running])]


class Execute(Protocol):
    """Lets a formed step happen in virtual time and fills in its log row from column 1."""

    def __call__(
        self, env: simpy.Environment, replica: Replica, row: NDArray[np.float64]
    ) -> ProcessGenerator:
        """The step as a process."""
        ...


class ByTable:
    """One timeout of the table's price."""

    def __init__(self, table: StepTable) -> None:
        self.table = table

    def __call__(
        self, env: simpy.Environment, replica: Replica, row: NDArray[np.float64]
    ) -> ProcessGenerator:
        row[1] = price_step(replica.requests, replica.ranks, self.table, row)
        yield env.timeout(row[1])


class ByRanks(by_ranks.ByRanks):
    """Every rank a process, as the engine has it."""

    def __call__(
        self, env: simpy.Environment, replica: Replica, row: NDArray[np.float64]
    ) -> ProcessGenerator:
        number = int(replica.clock.num_steps[0])
        batches = by_ranks.read_batches(replica.requests, replica.ranks)
        yield from self.take_step(env, replica.number, number, batches, row)
