"""DualPipeV: layers go down the stages and up again, and a forward and a backward pass run
together, each computing while the other's tokens travel (``dualpipev.py`` of
github.com/deepseek-ai/DualPipe; DeepSeek-V3, arXiv:2412.19437, section 3.2.1).

Each stage holds a chunk of the way down and one of the way up, so its weights are those of
``one_f_one_b``. The eight parts of a step are those of the published program.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from simulator.base.frozen import Frozen
from simulator.policies.pipelining import ChunkPlace, Pass, PassKind, Turn


class DualPipeV(Frozen):
    """Two chunks a stage, placed like a V; weight gradients fill gaps."""

    def place_chunks(self, num_stages: int) -> tuple[ChunkPlace, ...]:
        down = [ChunkPlace(stage, 0) for stage in range(num_stages)]
        up = [ChunkPlace(stage, 1) for stage in reversed(range(num_stages))]
        return (*down, *up)

    def find_refusal(self, num_stages: int, num_micro_batches: int) -> str | None:
        if num_micro_batches >= 2 * num_stages:
            return None
        return (
            f"a step of {num_micro_batches} micro-batches must have at least twice as many as "
            f'stages ({2 * num_stages}); fewer run with kind = "zero_bubble"'
        )

    def list_turns(self, stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Turn]:
        behind = num_stages - stage - 1
        passes = _Passes()
        for _ in range(2 * behind):
            yield (passes.forward(0),)
        for _ in range(stage + 1):
            yield (passes.forward(0),)
            yield (passes.forward(1),)
        for _ in range(behind):
            yield (passes.input(1),)
            yield (passes.weight(),)
            yield (passes.forward(1),)
        for number in range(num_micro_batches - 2 * num_stages + stage + 1):
            if number == 0 and stage == num_stages - 1:
                # The last stage's own way down and up follow each other at once.
                yield (passes.forward(0),)
                yield (passes.backward(1),)
            else:
                yield passes.forward(0), passes.backward(1)
            yield passes.forward(1), passes.backward(0)
        for _ in range(behind):
            yield (passes.backward(1),)
            yield passes.forward(1), passes.backward(0)
        yield from _end_backwards(passes, stage)
        for _ in range(behind):
            yield (passes.weight(),)
            yield (passes.input(0),)
        while passes.waiting:
            yield (passes.weight(),)


class _Passes:
    """Numbers of the passes of a stage, and gradients of weights that are still to be made."""

    def __init__(self) -> None:
        self._numbers = {(way, chunk): count() for way in ("down", "up") for chunk in (0, 1)}
        self.waiting: list[Pass] = []

    def forward(self, chunk: int) -> Pass:
        return Pass("forward", next(self._numbers["down", chunk]), chunk)

    def backward(self, chunk: int, kind: PassKind = "backward") -> Pass:
        return Pass(kind, next(self._numbers["up", chunk]), chunk)

    def input(self, chunk: int) -> Pass:
        made = self.backward(chunk, "input")
        self.waiting.append(made._replace(kind="weight"))
        return made

    def weight(self) -> Pass:
        return self.waiting.pop(0)


def _end_backwards(passes: _Passes, stage: int) -> Iterator[Turn]:
    """Yield the last backward passes of both chunks, the second half of which leaves the weights
    for later.
    """
    splits = False
    for number in range(stage + 1):
        if number == (stage + 1) // 2 and stage % 2 == 1:
            splits = True
        yield (passes.input(1) if splits else passes.backward(1),)
        if number == (stage + 1) // 2 and stage % 2 == 0:
            splits = True
        yield (passes.input(0) if splits else passes.backward(0),)
