"""Pipelining of a training step: the order in which each stage runs the passes of its
micro-batches, one schedule in a file.

A stage holds one or several chunks of consecutive layers. A micro-batch goes forward through all
chunks in the order of layers, and its gradient comes back the other way. What a schedule leaves
idle, the bubble, follows from the order alone and from the seconds of the passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from simulator.base.frozen import Frozen

PassKind = Literal["forward", "backward", "input", "weight"]
"""Kind of pass: ``backward`` makes the gradients of inputs and of weights together; ``input`` and
``weight`` make one of them each."""


class Pass(NamedTuple):
    """Pass of one micro-batch through one chunk of a stage."""

    kind: PassKind
    micro_batch: int
    chunk: int = 0


Turn = tuple[Pass, ...]
"""Passes that a stage runs at one time: one, or a forward and a backward pass of two micro-batches,
each of which computes while the other's data travel."""


class ChunkPlace(NamedTuple):
    """Place of a chunk of layers."""

    stage: int
    chunk: int


class PipeliningPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def place_chunks(self, num_stages: int) -> Sequence[ChunkPlace]:
        """Place all chunks, in the order of layers; every stage holds equally many."""
        ...

    def find_refusal(self, num_stages: int, num_micro_batches: int) -> str | None:
        """Find the reason why the schedule does not run so many micro-batches on so many stages,
        with what would do; ``None`` where it does.
        """
        ...

    def list_turns(self, stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Turn]:
        """List the turns of a stage in order: every micro-batch once forward and once backward
        (``backward``, or ``input`` and later ``weight``) through each chunk of the stage.
        """
        ...


class OneChunk(Frozen):
    """Base of schedules with one chunk a stage, which run any number of micro-batches."""

    def place_chunks(self, num_stages: int) -> tuple[ChunkPlace, ...]:
        return place_in_turn(num_stages, 1)

    def find_refusal(self, num_stages: int, num_micro_batches: int) -> None:
        return None


def place_in_turn(num_stages: int, chunks: int) -> tuple[ChunkPlace, ...]:
    """Place chunks on stage after stage, and begin again at the first."""
    return tuple(ChunkPlace(stage, chunk) for chunk in range(chunks) for stage in range(num_stages))
