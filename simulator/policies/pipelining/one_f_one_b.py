"""One forward, one backward: a stage goes backward as soon as it can (PipeDream-Flush; Narayanan et
al., arXiv:2006.09503, and Megatron-LM, arXiv:2104.04473, section 2.2).

Its bubble is ``(p - 1) / (m + p - 1)`` of the step, and stage ``s`` of ``p`` keeps the activations
of at most ``p - s`` micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.policies.pipelining import OneChunk, Pass, Turn


class OneForwardOneBackward(OneChunk):
    """Forward and backward passes in turn, once as many micro-batches are on their way as there
    are stages behind.
    """

    def list_turns(self, stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Turn]:
        ahead = min(num_stages - stage - 1, num_micro_batches)
        for number in range(ahead):
            yield (Pass("forward", number),)
        for number in range(num_micro_batches):
            if number + ahead < num_micro_batches:
                yield (Pass("forward", number + ahead),)
            yield (Pass("backward", number),)
