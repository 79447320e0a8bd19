"""Zero bubble: gradients of weights wait for gaps, since no other stage waits for them (Qi et al.,
arXiv:2401.10241, schedule ZB-H1).

With equal seconds ``f``, ``b`` and ``w`` of forward, input-gradient and weight-gradient passes, its
bubble is ``(p - 1) (f + b - w)`` seconds, where ``one_f_one_b`` has ``(p - 1) (f + b + w)``; stages
keep as many activations as the first stage of that.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.policies.pipelining import OneChunk, Pass, Turn


class ZeroBubble(OneChunk):
    """Stage ``s`` makes the gradients of weights ``s`` micro-batches after those of inputs."""

    def list_turns(self, stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Turn]:
        ahead = min(num_stages - stage - 1, num_micro_batches)
        for number in range(ahead):
            yield (Pass("forward", number),)
        for number in range(num_micro_batches):
            if number + ahead < num_micro_batches:
                yield (Pass("forward", number + ahead),)
            yield (Pass("input", number),)
            if number >= stage:
                yield (Pass("weight", number - stage),)
        for number in range(max(num_micro_batches - stage, 0), num_micro_batches):
            yield (Pass("weight", number),)
