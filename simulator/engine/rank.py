"""Run one step with every rank as a SimPy process: it computes, meets the others of its group,
exchanges, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import simpy
from simpy.events import Event, ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.engine.cores import SharedCores
from simulator.engine.fabric import Wires
from simulator.results.tables import STEP_PHASES
from simulator.step.program import Busy, Finish, Operation, Start, Together


class Span(NamedTuple):
    """What a rank did for a while."""

    rank: int
    phase: str
    layer: int
    start_s: float
    duration_s: float


@dataclass
class StepTimes:
    """Where a step's time went: seconds by phase, mean over ranks; they add up to the step's
    duration.
    """

    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEP_PHASES, 0.0))
    spans: list[Span] | None = None
    """Every rank's timeline, when asked for."""

    @property
    def duration_s(self) -> float:
        """Length of the step."""
        return sum(self.phases.values())


class _Meeting:
    """One group at one operation: the last to come starts the exchange, all leave when it ends."""

    def __init__(self, env: simpy.Environment, size: int, exchange: Exchange) -> None:
        self.missing = size
        self.exchange = exchange
        self.started_s = 0.0
        self.over: Event = env.event()


def run_step(
    env: simpy.Environment,
    wires: Wires,
    program: list[Operation],
    num_ranks: int,
    *,
    shared_cores: int | None = None,
    keep_spans: bool = False,
) -> ProcessGenerator:
    """Execute a program; the process's value is its :class:`StepTimes`.

    Args:
        shared_cores: cores that all ranks compute on, where there are fewer than ranks.
    """
    times = StepTimes(spans=[] if keep_spans else None)
    everyone = Together("wait", -1, (tuple(range(num_ranks)),), (Exchange.nothing(),))
    operations = [*program, everyone]
    meetings: dict[tuple[str, int, int], _Meeting] = {}
    started_s = env.now
    cores = None if shared_cores is None else SharedCores(env, num_ranks, shared_cores)
    ranks = [
        env.process(
            _rank(env, wires, cores, operations, rank, num_ranks, meetings, times, started_s)
        )
        for rank in range(num_ranks)
    ]
    yield env.all_of(ranks)
    return times


def finish_step(env: simpy.Environment, step: ProcessGenerator) -> StepTimes:
    """Let virtual time run until the step is over."""
    process = env.process(step)
    env.run(process)
    if not isinstance(process.value, StepTimes):
        raise TypeError("not a step")
    return process.value


def _rank(
    env: simpy.Environment,
    wires: Wires,
    cores: SharedCores | None,
    operations: list[Operation],
    rank: int,
    num_ranks: int,
    meetings: dict[tuple[str, int, int], _Meeting],
    times: StepTimes,
    started_s: float,
) -> ProcessGenerator:
    """The life of one rank through the step. What it computes between two meetings is one timeout,
    since nobody else is concerned.
    """

    def account(phase: str, layer: int, since_s: float, until_s: float) -> None:
        if until_s > since_s:
            times.phases[phase] += (until_s - since_s) / num_ranks
            if times.spans is not None:
                times.spans.append(Span(rank, phase, layer, since_s - started_s, until_s - since_s))

    busy_until_s = env.now
    for number, operation in enumerate(operations):
        if isinstance(operation, Busy):
            seconds, since_s = float(operation.seconds_R[rank]), busy_until_s
            if cores is None:
                busy_until_s += seconds
            elif seconds > 0.0:
                yield cores.work(rank, seconds)
                busy_until_s = env.now
            account(operation.phase, operation.layer, since_s, busy_until_s)
            continue
        if busy_until_s > env.now:
            yield env.timeout(busy_until_s - env.now)
        since_s = busy_until_s = env.now
        if isinstance(operation, Finish):
            started = operation.start
            sent = meetings["start", started.number, _group_of(rank, started.groups)]
            yield sent.over
            begun_s = min(max(since_s, sent.started_s), env.now)
            account("wait", started.layer, since_s, begun_s)
            account(started.phase, started.layer, begun_s, env.now)
            busy_until_s = env.now
            continue
        group = _group_of(rank, operation.groups)
        name = (
            ("start", operation.number, group)
            if isinstance(operation, Start)
            else ("together", number, group)
        )
        meeting = meetings.get(name)
        if meeting is None:
            meeting = meetings[name] = _Meeting(
                env, len(operation.groups[group]), operation.exchanges[group]
            )
        meeting.missing -= 1
        if meeting.missing == 0:
            meeting.started_s = env.now
            env.process(_exchange(env, wires, meeting))
        if isinstance(operation, Start):
            continue
        yield meeting.over
        account("wait", operation.layer, since_s, meeting.started_s)
        account(operation.phase, operation.layer, meeting.started_s, env.now)
        busy_until_s = env.now


def _group_of(rank: int, groups: tuple[tuple[int, ...], ...]) -> int:
    if len(groups) == 1:
        return 0
    return next(g for g, members in enumerate(groups) if rank in members)


def _exchange(env: simpy.Environment, wires: Wires, meeting: _Meeting) -> ProcessGenerator:
    if meeting.exchange.stagger_s > 0.0:
        yield env.timeout(meeting.exchange.stagger_s)
        meeting.started_s = env.now
    if meeting.exchange.latency_s > 0.0 or meeting.exchange.busy_s.size:
        yield wires.carry(meeting.exchange)
    meeting.over.succeed()
