"""All ranks of a step in one process, for programs in which every exchange joins all ranks: what filling the tables takes.

The same times as :mod:`simulator.engine.rank`, which a test holds it to, in a fraction of the events: what each rank computes is
added to a vector of clocks, and only exchanges, which may share the wires, are events.
"""

from __future__ import annotations

import numpy as np
import simpy
from simpy.events import Event, ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.engine.fabric import FluidWires
from simulator.program import Busy, Finish, Operation, Start
from simulator.records import STEP_PHASES


class _Flight:
    """An exchange under way."""

    def __init__(self, env: simpy.Environment) -> None:
        self.started_s = self.over_s = 0.0
        self.over: Event = env.event()


def run_lockstep(program: list[Operation], num_ranks: int) -> dict[str, float]:
    """Seconds of the program by phase, mean over ranks, the wait for the last rank at its end included."""
    env = simpy.Environment()
    phases = dict.fromkeys(STEP_PHASES, 0.0)
    env.run(env.process(_run(env, FluidWires(env), program, num_ranks, phases)))
    return phases


def _run(
    env: simpy.Environment, wires: FluidWires, program: list[Operation], num_ranks: int, phases: dict[str, float]
) -> ProcessGenerator:
    clock_R = np.zeros(num_ranks)
    flights: dict[int, _Flight] = {}
    for operation in program:
        if isinstance(operation, Busy):
            clock_R = clock_R + operation.seconds_R
            phases[operation.phase] += float(operation.seconds_R.mean())
            continue
        if isinstance(operation, Finish):
            phase, flight = operation.start.phase, flights.pop(operation.start.number)
        else:
            phase, flight = operation.phase, _Flight(env)
            env.process(_exchange(env, wires, flight, float(clock_R.max()), operation.exchanges[0]))
            if isinstance(operation, Start):
                flights[operation.number] = flight
                continue
        yield flight.over
        begun_R = np.clip(flight.started_s, clock_R, np.maximum(clock_R, flight.over_s))
        phases["wait"] += float((begun_R - clock_R).mean())
        clock_R = np.maximum(clock_R, flight.over_s)
        phases[phase] += float((clock_R - begun_R).mean())
    phases["wait"] += float((clock_R.max() - clock_R).mean())


def _exchange(env: simpy.Environment, wires: FluidWires, flight: _Flight, at_s: float, exchange: Exchange) -> ProcessGenerator:
    flight.started_s = at_s + exchange.stagger_s
    if flight.started_s > env.now:
        yield env.timeout(flight.started_s - env.now)
    if exchange.latency_s > 0.0 or exchange.busy_s.size:
        yield wires.carry(exchange)
    flight.over_s = env.now
    flight.over.succeed()
