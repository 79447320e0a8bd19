"""Wires of the ``rank`` fidelity: each exchange is one fluid over all its links, and exchanges
share links max-min fairly.

All messages of an exchange progress together and end together, as in a coflow scheduled with
minimum allocation (Chowdhury et al., "Efficient Coflow Scheduling with Varys", SIGCOMM 2014), so an
exchange alone takes its latency plus its busiest link.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.base.jit import jit
from simulator.cost.comm import Exchange


class Wires(Protocol):
    """Transport of exchanges in virtual time."""

    def carry(self, exchange: Exchange) -> Event:
        """Start an exchange; the event succeeds when its last byte has arrived."""
        ...


@dataclass(eq=False)
class _Flow:
    busy_s: NDArray[np.float64]
    done: Event
    remaining: float = 1.0
    """Share of the exchange still to be carried."""
    rate: float = field(default=0.0)
    """Share of the exchange carried per second."""


class FluidWires:
    """Transport of exchanges as fluids, whose rates change when one begins or ends."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self._flows: list[_Flow] = []
        self._updated_s = 0.0
        self._round = 0

    def carry(self, exchange: Exchange) -> Event:
        """Start an exchange: its latency, then its bytes."""
        if not exchange.busy_s.size or exchange.busy_s.max() == 0.0:
            return self.env.timeout(exchange.latency_s)
        if not self._flows and exchange.latency_s == 0.0:
            return self._start(exchange.busy_s)
        return self.env.process(self._start_after_latency(exchange))

    def _start_after_latency(self, exchange: Exchange) -> ProcessGenerator:
        yield self.env.timeout(exchange.latency_s)
        yield self._start(exchange.busy_s)

    def _start(self, busy_s: NDArray[np.float64]) -> Event:
        flow = _Flow(busy_s, self.env.event())
        self._advance()
        self._flows.append(flow)
        self._reschedule()
        return flow.done

    def _advance(self) -> None:
        elapsed_s = self.env.now - self._updated_s
        self._updated_s = self.env.now
        for flow in self._flows:
            flow.remaining -= flow.rate * elapsed_s

    def _reschedule(self) -> None:
        for flow, rate in zip(
            self._flows, fair_rates([flow.busy_s for flow in self._flows]), strict=True
        ):
            flow.rate = rate
        self._round += 1
        if self._flows:
            left_s = [max(flow.remaining, 0.0) / flow.rate for flow in self._flows]
            first_s = min(left_s)
            due = [
                flow
                for flow, seconds in zip(self._flows, left_s, strict=True)
                if seconds <= first_s * (1 + 1e-9)
            ]
            self.env.process(self._wake(first_s, due, self._round))

    def _wake(self, delay_s: float, due: list[_Flow], round_: int) -> ProcessGenerator:
        """End the flows that are due. The remainder is rounding: late in a run the clock cannot
        resolve 10 us to 1e-9 of it.
        """
        yield self.env.timeout(delay_s)
        if round_ != self._round:
            return  # rates have changed since; a later wake-up holds
        self._advance()
        self._flows = [flow for flow in self._flows if flow not in due]
        for flow in due:
            flow.done.succeed()
        self._reschedule()


def fair_rates(busy_s: list[NDArray[np.float64]]) -> list[float]:
    """Max-min fair rates of fluids over links, in shares of a fluid per second.

    Args:
        busy_s: for each fluid, the seconds that each link would need for all of it.
    """
    if len(busy_s) == 1:
        return [1.0 / float(busy_s[0].max())]
    return [float(rate) for rate in shared_rates(np.stack(busy_s))] if busy_s else []


@jit
def shared_rates(busy_FL: Any) -> Any:
    """Max-min fair rates of fluids over links, for compiled code (:func:`fair_rates`).

    All rates rise together, in proportion to what each fluid would reach alone, until a link is
    full; the fluids on it keep their rate and the rest rise on (progressive filling; Bertsekas and
    Gallager, "Data Networks", 6.5).
    """
    num_flows, num_links = busy_FL.shape
    alone_F, level_F = np.zeros(num_flows), np.zeros(num_flows)
    for flow in range(num_flows):
        alone_F[flow] = 1.0 / largest(busy_FL[flow])
    rising_F = np.ones(num_flows, dtype=np.bool_)
    room_L = np.empty(num_links)
    num_rising = num_flows
    while num_rising > 0:
        step = np.inf
        for link in range(num_links):
            used, growth = 0.0, 0.0
            for flow in range(num_flows):
                load = busy_FL[flow, link] * alone_F[flow]
                used += level_F[flow] * load
                growth += load if rising_F[flow] else 0.0
            room_L[link] = (1.0 - used) / growth if growth > 1e-15 else np.inf
            step = min(step, room_L[link])
        step = max(step, 0.0)
        for flow in range(num_flows):
            if rising_F[flow]:
                level_F[flow] += step
                for link in range(num_links):
                    if room_L[link] <= step + 1e-12 and busy_FL[flow, link] * alone_F[flow] > 1e-15:
                        rising_F[flow] = False
                num_rising -= not rising_F[flow]
    return level_F * alone_F


@jit
def largest(seconds: Any) -> float:
    """Largest value, or 0 of an empty array."""
    found = 0.0
    for value in seconds:
        found = max(found, value)
    return found
