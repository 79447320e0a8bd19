"""Execution of all ranks of a step in one compiled loop, for programs in which every exchange joins
all ranks: most of the time of filling tables.

Its times equal those of :mod:`simulator.engine.rank`, which a test checks, without events: each
rank's computation is added to a vector of clocks, and exchanges in flight, which may share the
wires, are advanced only as far as a rank waits for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit
from simulator.cost.comm import Exchange
from simulator.engine.fabric import drain_links, find_ends, largest
from simulator.results.phases import STEP_PHASES
from simulator.step.program import Busy, Finish, Operation, Start, Together

_BUSY, _START, _FINISH = 0, 1, 2
"""Kinds of operations in compiled code."""
_PHASES = {phase: number for number, phase in enumerate(STEP_PHASES)}


class Lockstep:
    """Program of a step, prepared for running."""

    def __init__(self, program: list[Operation], num_ranks: int) -> None:
        orders: list[tuple[int, int, int]] = []
        seconds: list[NDArray[np.float64]] = []
        exchanges: list[Exchange] = []
        flights: dict[int, int] = {}
        for operation in program:
            phase = _PHASES[
                operation.start.phase if isinstance(operation, Finish) else operation.phase
            ]
            if isinstance(operation, Busy):
                orders.append((_BUSY, phase, len(seconds)))
                seconds.append(operation.seconds_R)
                continue
            if isinstance(operation, Start | Together):
                flight = len(exchanges)
                orders.append((_START, phase, flight))
                exchanges.append(operation.exchanges[0])
            if isinstance(operation, Start):
                flights[operation.number] = flight
            else:
                orders.append(
                    (
                        _FINISH,
                        phase,
                        flights.pop(operation.start.number)
                        if isinstance(operation, Finish)
                        else flight,
                    )
                )
        self._orders_O3 = np.array(orders, dtype=np.int64).reshape(-1, 3)
        self._seconds_BR = np.array(seconds, dtype=np.float64).reshape(-1, num_ranks)
        self._delays_F2 = np.array(
            [(way.stagger_s, way.latency_s) for way in exchanges], dtype=np.float64
        ).reshape(-1, 2)
        self._busy_FL = np.zeros(
            (len(exchanges), max((way.busy_s.size for way in exchanges), default=0))
        )
        for busy_L, way in zip(self._busy_FL, exchanges, strict=True):
            busy_L[: way.busy_s.size] = way.busy_s

    def run(self, attention: float = 1.0) -> dict[str, float]:
        """Seconds of the program by phase, mean over ranks, including the wait for the last rank at
        its end.

        Args:
            attention: what the seconds of that phase are multiplied by.
        """
        factor_P = np.ones(len(STEP_PHASES))
        factor_P[_PHASES["attention"]] = attention
        phases_P = _run(
            self._orders_O3,
            self._seconds_BR,
            self._delays_F2,
            self._busy_FL,
            factor_P,
            _PHASES["wait"],
        )
        return dict(zip(STEP_PHASES, phases_P.tolist(), strict=True))


@jit
def _run(
    orders_O3: Any, seconds_BR: Any, delays_F2: Any, busy_FL: Any, factor_P: Any, wait: int
) -> Any:
    num_flights, num_ranks = len(busy_FL), seconds_BR.shape[1]
    phases_P = np.zeros(len(factor_P))
    clock_R = np.zeros(num_ranks)
    started_F = np.zeros(num_flights)
    begins_F = np.zeros(num_flights)
    over_F = np.full(num_flights, np.inf)
    left_FL = busy_FL.copy()
    open_F = np.zeros(num_flights, dtype=np.bool_)
    now_s = 0.0
    for kind, phase, index in orders_O3:
        if kind == _BUSY:
            for rank in range(num_ranks):
                seconds = seconds_BR[index, rank] * factor_P[phase]
                clock_R[rank] += seconds
                phases_P[phase] += seconds / num_ranks
        elif kind == _START:
            started_F[index] = largest(clock_R) + delays_F2[index, 0]
            begins_F[index] = started_F[index] + delays_F2[index, 1]
            open_F[index] = True
        else:
            now_s = _bring_over(index, now_s, begins_F, over_F, open_F, left_FL)
            for rank in range(num_ranks):
                here_s = clock_R[rank]
                over_s = max(here_s, over_F[index])
                begun_s = min(max(started_F[index], here_s), over_s)
                phases_P[wait] += (begun_s - here_s) / num_ranks
                phases_P[phase] += (over_s - begun_s) / num_ranks
                clock_R[rank] = over_s
    phases_P[wait] += largest(clock_R) - clock_R.sum() / num_ranks
    return phases_P


@jit
def _bring_over(
    flight: int, now_s: float, begins_F: Any, over_F: Any, open_F: Any, left_FL: Any
) -> float:
    """Advance exchanges that share the wires until ``flight`` has ended. Returns the time at which
    it ends.

    Args:
        left_FL: seconds that each exchange would still need of each link by itself; changed.
    """
    while open_F[flight]:
        num_flowing, next_s = 0, np.inf
        flowing_F = np.empty(len(open_F), dtype=np.int64)
        for other in range(len(open_F)):
            if not open_F[other]:
                continue
            if begins_F[other] > now_s:
                next_s = min(next_s, begins_F[other])
            elif largest(left_FL[other]) == 0.0:  # nothing to carry
                over_F[other], open_F[other] = begins_F[other], False
            else:
                flowing_F[num_flowing] = other
                num_flowing += 1
        if not open_F[flight]:
            return now_s  # others flow on beside what starts next
        flow_FL = np.empty((num_flowing, left_FL.shape[1]))
        for place in range(num_flowing):
            for link in range(left_FL.shape[1]):  # a whole row takes two seconds to compile
                flow_FL[place, link] = left_FL[flowing_F[place], link]
        ends_F, first_s = find_ends(flow_FL), np.inf
        for place in range(num_flowing):
            first_s = min(first_s, ends_F[place])
        elapsed_s = min(first_s, next_s - now_s)
        if elapsed_s == np.inf:
            return now_s
        drain_links(flow_FL, elapsed_s)
        for place in range(num_flowing):
            other = flowing_F[place]
            for link in range(left_FL.shape[1]):
                left_FL[other, link] = flow_FL[place, link]
            if ends_F[place] <= elapsed_s * (1 + 1e-9):  # what is left of it is rounding
                over_F[other], open_F[other] = now_s + elapsed_s, False
        now_s = next_s if next_s - now_s < first_s else now_s + elapsed_s
    return now_s
