"""Routed experts of one layer beside their exchanges: experts compute the chunk of tokens that has
arrived while the next one travels, and shared experts while the first does.

One kernel sends chunk after chunk and signals each one's arrival, and one computes the tiles of
what has arrived (COMET, arXiv:2502.19811), so that latency is paid once and weights are read once:
chunks take equal parts of what the layer takes whole. What an exchange's kernels keep from the GPU
is spent where a chunk leaves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from simulator.cost.comm import Exchange
from simulator.step.expert_prices import ExpertStep
from simulator.step.program import Busy, Finish, Operation, Start


class ChunkedLayer(NamedTuple):
    """Experts and exchanges of one layer in equal chunks."""

    layer: int
    ranks: tuple[int, ...]
    """Ranks that exchange tokens."""
    step: ExpertStep
    num_chunks: int

    def list_operations(self, hidden: Busy | None) -> list[Operation]:
        """List the operations in the order of a GPU's stream.

        Args:
            hidden: computation while the first chunk travels.
        """
        count = self.num_chunks
        out = [self._start("dispatch", chunk) for chunk in range(count)]
        back = [self._start("combine", chunk) for chunk in range(count)]
        found: list[Operation] = self._send(out[0])
        if hidden is not None:
            found.append(hidden)
        found.append(Finish(out[0]))
        for chunk in range(count):
            is_last = chunk == count - 1
            if not is_last:
                found += self._send(out[chunk + 1])
            found.append(Busy("experts", self.layer, self.step.experts_R / count))
            found += self._send(back[chunk])
            if not is_last:
                found.append(Finish(out[chunk + 1]))
        return found + [Finish(one) for one in back]

    def _start(self, phase: Literal["dispatch", "combine"], chunk: int) -> Start:
        exchange = cut_exchange(getattr(self.step, phase), self.num_chunks, chunk)
        number = 2 * self.num_chunks * self.layer + chunk
        number += self.num_chunks * (phase == "combine")
        return Start(phase, self.layer, (self.ranks,), (exchange,), number)

    def _send(self, start: Start) -> list[Operation]:
        """List the start of an exchange, and what its kernels keep from the GPU."""
        held_s = start.exchanges[0].held_s
        return [start, Busy(start.phase, start.layer, np.full(len(self.ranks), held_s))]


def cut_exchange(exchange: Exchange, num_chunks: int, chunk: int) -> Exchange:
    """Cut an exchange into equal chunks, of which the first one has all of its latency. Its kernels
    keep as large a share of each chunk's time from the GPU as of the whole's.
    """
    if num_chunks == 1:
        return exchange
    first = float(chunk == 0)
    part = replace(
        exchange,
        latency_s=exchange.latency_s * first,
        stagger_s=exchange.stagger_s * first,
        busy_s=exchange.busy_s / num_chunks,
        sent=exchange.sent.times(1.0 / num_chunks),
    )
    whole_s, part_s = (one.alone_s - one.stagger_s for one in (exchange, part))
    return replace(part, held_s=exchange.held_s * (part_s / whole_s if whole_s else 0.0))
