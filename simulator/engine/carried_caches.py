"""Caches on their way from a prefill pool to a decode pool where links are simulated: each is an
exchange between the GPUs that hold it, beside the steps of both replicas.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import simpy
from simpy.events import ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.cost.transfer import Transfer
from simulator.engine.events import ARRIVES, code_of, push_event, remove_events
from simulator.engine.links import SharedWires
from simulator.engine.replica_states import Run
from simulator.policies.messages import Messages


class CarriedCaches:
    """Caches under way on the shared links; each data-parallel rank sends one after the other."""

    def __init__(self, run: Run, wires: SharedWires) -> None:
        """Begin with none."""
        self._run, self._state, self._env = run, run.state, run.instants.env
        self._joined, self._wires = wires.joined, wires.between
        self._senders: dict[tuple[int, int], simpy.Resource] = {}
        """Turn of each sending rank, by replica and data-parallel group."""
        self._number_of: Counter[int] = Counter()
        """Number of the latest transfer of each request, by its number in the trace."""

    def send(self, row: int) -> None:
        """Send the cache of a request, by its row, into the blocks reserved for it. Until it is
        there its arrival is an event without a time, which goes where a replica is lost meanwhile.
        """
        push_event(self._state.events, math.inf, code_of(ARRIVES, row))
        request = row + self._state.first.requests.first
        self._number_of[request] += 1
        self._env.process(self._carry(request, self._number_of[request]))

    def _carry(self, request: int, number: int) -> ProcessGenerator:
        transfer, first = self._state.plan.transfer, self._state.first
        assert transfer is not None
        assert self._wires is not None
        row = request - first.requests.first
        replica, d = int(first.requests.each.replica[row]), int(first.requests.each.dp_rank[row])
        ready_s = first.requests.each.first_s[row] + transfer.handshake_s
        exchange = self._make_exchange(row, transfer)
        if ready_s > self._env.now:
            yield self._env.timeout(ready_s - self._env.now)
        num_groups = self._state.pools[0].plan.placement.layout.attention_dp
        key = replica, d % num_groups
        sender = self._senders.setdefault(key, simpy.Resource(self._env))
        with sender.request() as turn:
            yield turn
            if self._is_latest(request, number):
                yield self._wires.carry(exchange)
        yield self._env.timeout(transfer.latency_s)
        if not self._is_latest(request, number):
            return
        row, now_s = request - self._state.pools[0].requests.first, self._env.now
        code = code_of(ARRIVES, row)
        if remove_events(self._state.events, [code]):  # else its transfer was called off
            self._state.pools[1].requests.each.arrival_s[row] = now_s
            push_event(self._state.events, now_s, code)
            self._run.look_soon()

    def _is_latest(self, request: int, number: int) -> bool:
        return self._number_of[request] == number

    def _make_exchange(self, row: int, transfer: Transfer) -> Exchange:
        """Make the exchange of a request's cache: what is left to be sent of it, from the GPUs of
        the group that computed it to those that store it.
        """
        state, joined = self._state, self._joined
        assert joined is not None
        assert joined.between is not None
        request = state.first.requests.each[row]
        num_tokens = int(request.num_input)
        computing_s = request.first_s - request.scheduled_s + transfer.handshake_s
        alone_s = max(transfer.send_s(num_tokens), transfer.receive_s(num_tokens))
        left = transfer.left_s(alone_s, computing_s) / alone_s if alone_s else 0.0
        sides = [self._list_gpus(place, row) for place in (0, 1)]
        bytes_of = spread_cache(left * transfer.num_bytes(num_tokens), *sides)
        sent = Messages.from_pairs(joined.fabric.num_ranks, bytes_of)
        rates = np.array([link.bytes_per_s for link in joined.fabric.links])
        busy_s = joined.between.sum_by_link(sent) / (rates * transfer.wire_fraction)
        return Exchange(0.0, busy_s, sent)

    def _list_gpus(self, place: int, row: int) -> list[int]:
        """List the GPUs that hold a request's cache in a pool, stage by stage."""
        pool, name = self._state.pools[place], self._state.names[place]
        layout = pool.plan.placement.layout
        assert self._joined is not None
        first = self._joined.gpu_of[name, int(pool.requests.each.replica[row])]
        group = first + int(pool.requests.each.dp_rank[row]) % layout.attention_dp * layout.tp
        return [
            group + stage * layout.num_ranks + rank
            for stage in range(layout.pp)
            for rank in range(layout.tp)
        ]


def spread_cache(
    num_bytes: float, senders: list[int], receivers: list[int]
) -> dict[tuple[int, int], float]:
    """Spread a cache that senders, and receivers, hold equal and consecutive parts of: bytes from
    each to each.

    >>> spread_cache(12.0, [0, 1], [4, 5, 6])
    {(0, 4): 4.0, (0, 5): 2.0, (1, 5): 2.0, (1, 6): 4.0}
    """
    num_parts = len(senders) * len(receivers)
    found = {}
    for s, r in np.ndindex(len(senders), len(receivers)):
        begin = max(s * len(receivers), r * len(senders))
        end = min((s + 1) * len(receivers), (r + 1) * len(senders))
        if end > begin:
            found[senders[s], receivers[r]] = num_bytes * (end - begin) / num_parts
    return found
