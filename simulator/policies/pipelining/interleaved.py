"""Interleaved one forward, one backward: each stage holds several chunks of layers (Megatron-LM,
arXiv:2104.04473, section 2.2; ``forward_backward_pipelining_with_interleaving``).

Its bubble is ``(p - 1) / (v m + p - 1)`` of the step for ``v`` chunks, and a micro-batch crosses
between stages ``v`` times as often.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from simulator.base.frozen import Frozen
from simulator.base.quantities import value_range
from simulator.policies.pipelining import ChunkPlace, Pass, Turn, place_in_turn


class Interleaved(Frozen):
    """Groups of as many micro-batches as stages go through one chunk after the other."""

    chunks: Annotated[int, value_range(1, 1_000, "chunks")] = 2
    """Chunks of layers on each stage (Megatron-LM's virtual pipeline stages)."""

    def place_chunks(self, num_stages: int) -> tuple[ChunkPlace, ...]:
        return place_in_turn(num_stages, self.chunks)

    def find_refusal(self, num_stages: int, num_micro_batches: int) -> str | None:
        if self.chunks == 1 or num_micro_batches % num_stages == 0:
            return None
        more = -(-num_micro_batches // num_stages) * num_stages
        return (
            f"pp ({num_stages}) must divide the {num_micro_batches} micro-batches of a step; "
            f'{more} would do, or kind = "one_f_one_b"'
        )

    def list_turns(self, stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Turn]:
        total = num_micro_batches * self.chunks
        ahead = min(
            2 * (num_stages - stage - 1) + (self.chunks - 1) * num_stages
            if self.chunks > 1
            else num_stages - stage - 1,
            total,
        )
        for number in range(ahead):
            yield (self._forward(number, num_stages),)
        for number in range(total):
            if number + ahead < total:
                yield (self._forward(number + ahead, num_stages),)
            forward = self._forward(number, num_stages)
            yield (Pass("backward", forward.micro_batch, self.chunks - 1 - forward.chunk),)

    def _forward(self, number: int, num_stages: int) -> Pass:
        """Forward pass of a number: a group of micro-batches in each chunk before the next one."""
        group, within = divmod(number, num_stages * self.chunks)
        chunk, place = divmod(within, num_stages)
        return Pass("forward", group * num_stages + place, chunk)
