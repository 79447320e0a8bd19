"""GPipe: all micro-batches forward, then all backward (Huang et al., arXiv:1811.06965).

Its bubble is ``(p - 1) / (m + p - 1)`` of the step, as that of ``one_f_one_b``, but a stage keeps
the activations of all ``m`` micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.policies.pipelining import OneChunk, Pass, Turn


class GPipe(OneChunk):
    """All forward passes before the first backward one."""

    def list_turns(self, stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Turn]:
        for number in range(num_micro_batches):
            yield (Pass("forward", number),)
        for number in range(num_micro_batches):
            yield (Pass("backward", number),)
