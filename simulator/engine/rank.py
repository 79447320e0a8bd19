"""Execution of one step with every rank as a SimPy process: it computes, meets the others of its
group, exchanges, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import simpy
from simpy.events import Event, ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.engine.cores import SharedCores
from simulator.engine.fabric import Wires
from simulator.results.phases import STEP_PHASES
from simulator.step.program import Busy, Finish, Operation, Start, Together


class Span(NamedTuple):
    """Activity of one rank for a while."""

    rank: int
    phase: str
    layer: int
    """Layer, -1 outside of layers."""
    start_s: float
    """Seconds from the start of the step."""
    duration_s: float


@dataclass
class StepTimes:
    """Times of one step: seconds by phase, mean over ranks, which add up to the step's duration."""

    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEP_PHASES, 0.0))
    spans: list[Span] | None = None
    """Timeline of every rank, if requested."""

    @property
    def duration_s(self) -> float:
        """Seconds of the step."""
        return sum(self.phases.values())


class _Meeting:
    """Meeting of one group at one operation: when the last member arrives, the exchange starts; all
    leave when it ends.
    """

    def __init__(self, env: simpy.Environment, size: int, exchange: Exchange) -> None:
        self.missing = size
        self.exchange = exchange
        self.started_s = 0.0
        """Time at which the last member arrives, as far as is known."""
        self.over: Event = env.event()


class _Work(NamedTuple):
    """Computation of each rank."""

    phase: str
    layer: int
    seconds_R: list[float]


class _Appointment(NamedTuple):
    """Operation at which groups of ranks meet, or wait for what they started."""

    phase: str
    layer: int
    meeting_R: list[_Meeting]
    """Meeting of each rank's group, ``[R]``."""
    comes: bool
    """Whether a rank is awaited here, as opposed to waiting for an exchange that it started."""
    waits: bool
    """Whether a rank waits until the exchange has ended."""


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
    everyone = Together("wait", -1, (tuple(range(num_ranks)),), (Exchange.empty(),))
    turns = _arrange(env, [*program, everyone], num_ranks)
    cores = None if shared_cores is None else SharedCores(env, shared_cores)
    ranks = [
        env.process(_rank(env, wires, cores, turns, rank, num_ranks, times))
        for rank in range(num_ranks)
    ]
    yield env.all_of(ranks)
    return times


def _arrange(
    env: simpy.Environment, program: list[Operation], num_ranks: int
) -> list[_Work | _Appointment]:
    """Translate a program for its ranks, each with its own group's meetings."""
    turns: list[_Work | _Appointment] = []
    started: dict[int, list[_Meeting]] = {}
    for operation in program:
        if isinstance(operation, Busy):
            turns.append(_Work(operation.phase, operation.layer, operation.seconds_R.tolist()))
        elif isinstance(operation, Finish):
            start = operation.start
            meeting_R = started[start.number]
            turns.append(_Appointment(start.phase, start.layer, meeting_R, False, True))
        else:
            meeting_R = _make_meetings(env, operation, num_ranks)
            waits = isinstance(operation, Together)
            turns.append(_Appointment(operation.phase, operation.layer, meeting_R, True, waits))
            if isinstance(operation, Start):
                started[operation.number] = meeting_R
    return turns


def _make_meetings(
    env: simpy.Environment, operation: Together | Start, num_ranks: int
) -> list[_Meeting]:
    """Make the meetings of an operation, one for each rank's group, ``[R]``."""
    meeting_of: dict[int, _Meeting] = {}
    for group, exchange in zip(operation.groups, operation.exchanges, strict=True):
        meeting_of |= dict.fromkeys(group, _Meeting(env, len(group), exchange))
    return [meeting_of[rank] for rank in range(num_ranks)]


def finish_step(env: simpy.Environment, step: ProcessGenerator) -> StepTimes:
    """Run virtual time until the step has ended."""
    process = env.process(step)
    env.run(process)
    if not isinstance(process.value, StepTimes):
        raise TypeError("not a step")
    return process.value


def _rank(
    env: simpy.Environment,
    wires: Wires,
    cores: SharedCores | None,
    turns: list[_Work | _Appointment],
    rank: int,
    num_ranks: int,
    times: StepTimes,
) -> ProcessGenerator:
    """Process of one rank through the step. Its computation between two meetings concerns no other
    rank, so it announces at once when it will arrive at the next.
    """
    started_s = busy_until_s = env.now

    def account(phase: str, layer: int, since_s: float, until_s: float) -> None:
        if until_s > since_s:
            times.phases[phase] += (until_s - since_s) / num_ranks
            if times.spans is not None:
                times.spans.append(Span(rank, phase, layer, since_s - started_s, until_s - since_s))

    for turn in turns:
        since_s = busy_until_s
        if isinstance(turn, _Work):
            seconds = turn.seconds_R[rank]
            if cores is None:
                busy_until_s += seconds
            elif seconds > 0.0:
                yield cores.work(seconds)
                busy_until_s = env.now
            account(turn.phase, turn.layer, since_s, busy_until_s)
            continue
        meeting, now_s = turn.meeting_R[rank], env.now
        since_s = now_s + (since_s - now_s)  # as the clock rounds it
        if turn.comes:
            meeting.started_s = max(meeting.started_s, since_s)
            meeting.missing -= 1
            if meeting.missing == 0:
                env.process(_exchange(env, wires, meeting))
        if turn.waits:
            yield meeting.over
            busy_until_s = max(since_s, env.now)
            begun_s = min(max(since_s, meeting.started_s), busy_until_s)
            account("wait", turn.layer, since_s, begun_s)
            account(turn.phase, turn.layer, begun_s, busy_until_s)


def _exchange(env: simpy.Environment, wires: Wires, meeting: _Meeting) -> ProcessGenerator:
    meeting.started_s += meeting.exchange.stagger_s
    if meeting.started_s > env.now:
        yield env.timeout(meeting.started_s - env.now)
    if meeting.exchange.latency_s > 0.0 or meeting.exchange.busy_s.size:
        yield wires.carry(meeting.exchange)
    meeting.over.succeed()
