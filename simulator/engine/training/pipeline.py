"""Stages of a pipeline in virtual time: every stage is a SimPy process that takes its turns in the
order of its schedule, and waits for what the stages beside it send.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import simpy
from simpy.events import Event, ProcessGenerator

from simulator.base.errors import UserError
from simulator.policies.pipelining import ChunkPlace, Pass, Turn

TurnSeconds = Callable[[int, Turn], float]
"""Function from a stage and its turn to seconds."""


class StageSpan(NamedTuple):
    """Turn of a stage in time."""

    stage: int
    turn: Turn
    start_s: float
    duration_s: float


class _Arrivals:
    """Data that passes wait for, by the pass that makes them."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._made: defaultdict[tuple[str, int, int], Event] = defaultdict(env.event)

    def find(self, way: str, micro_batch: int, depth: int) -> Event:
        """Find the event at which a micro-batch has come to a chunk ``down``, its gradient ``up``,
        or its chunk has passed ``through``.
        """
        return self._made[way, micro_batch, depth]

    def send(self, way: str, micro_batch: int, depth: int, delay_s: float) -> None:
        """Let data arrive after some seconds."""
        self._env.process(self._arrive(self.find(way, micro_batch, depth), delay_s))

    def _arrive(self, event: Event, delay_s: float) -> ProcessGenerator:
        yield self._env.timeout(delay_s)
        event.succeed()


def run_pipeline(
    turns: Sequence[Sequence[Turn]],
    places: Sequence[ChunkPlace],
    turn_s: TurnSeconds,
    send_s: float,
    begins_s: Sequence[float] | None = None,
) -> list[StageSpan]:
    """Run all turns of a step.

    Args:
        turns: of each stage, in order.
        places: of each chunk, in the order of layers.
        send_s: seconds from one stage to another.
        begins_s: seconds before the first turn of each stage; by default none.

    Returns:
        Turns of all stages in time, in the order of their ends.

    Raises:
        UserError: if the schedule waits for itself.
    """
    env = simpy.Environment()
    arrivals, spans = _Arrivals(env), []
    depth_of = {place: depth for depth, place in enumerate(places)}

    def run_stage(stage: int) -> ProcessGenerator:
        yield env.timeout(0.0 if begins_s is None else begins_s[stage])
        for turn in turns[stage]:
            for one in turn:
                yield from _await(one, depth_of[ChunkPlace(stage, one.chunk)])
            start_s, seconds = env.now, turn_s(stage, turn)
            yield env.timeout(seconds)
            spans.append(StageSpan(stage, turn, start_s, seconds))
            for one in turn:
                hand_on(one, depth_of[ChunkPlace(stage, one.chunk)])

    def _await(one: Pass, depth: int) -> ProcessGenerator:
        if one.kind == "forward" and depth > 0:
            yield arrivals.find("down", one.micro_batch, depth)
        if one.kind in ("backward", "input"):
            yield arrivals.find("through", one.micro_batch, depth)
            if depth < len(places) - 1:
                yield arrivals.find("up", one.micro_batch, depth)

    def hand_on(one: Pass, depth: int) -> None:
        if one.kind == "weight":
            return
        if one.kind == "forward":
            arrivals.find("through", one.micro_batch, depth).succeed()
        way, after = ("down", depth + 1) if one.kind == "forward" else ("up", depth - 1)
        if 0 <= after < len(places):
            is_near = places[after].stage == places[depth].stage
            arrivals.send(way, one.micro_batch, after, 0.0 if is_near else send_s)

    stages = [env.process(run_stage(stage)) for stage in range(len(turns))]
    env.run()
    if not all(stage.triggered for stage in stages):
        raise UserError("pipelining: the schedule waits for a pass that never comes")
    return spans
