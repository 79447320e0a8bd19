"""Texts of a training's sequences, which tokens take their experts from.

A sequence is of one kind of text, as a request is: the few sequences of a micro-batch load the
ranks of an expert-parallel group more unevenly than as many tokens of all kinds, mixed.
"""

from __future__ import annotations

import numpy as np

from simulator.deployment.placement import Placement
from simulator.policies.overflow import may_drop
from simulator.step.expert_choices import RecordedTokens
from simulator.step.program import Batch
from simulator.step.request_choices import RequestChoices
from simulator.workload.traces import RequestTrace

_MOST_TOKENS = 16_384
"""Most tokens of a micro-batch that are looked up, evenly spaced; a kind of text has 4,096 that
were drawn, and longer sequences repeat them."""


class SequenceTexts(RequestChoices):
    """Recorded tokens that sequences take their experts from."""

    def list_tokens(self, placement: Placement, batch: Batch) -> RecordedTokens:
        """List the tokens of a micro-batch, or evenly spaced ones that stand for all; all of them
        where some are dropped, which each depends on the others for.
        """
        experts = placement.experts
        assert experts is not None
        recorded_T = self.find_tokens(batch)
        if len(recorded_T) > _MOST_TOKENS and not may_drop(experts.overflow):
            spacing = len(recorded_T) / _MOST_TOKENS
            recorded_T = recorded_T[((np.arange(_MOST_TOKENS) + 0.5) * spacing).astype(np.int64)]
        layout = placement.layout
        return RecordedTokens(experts, layout, batch.tokens_d, self.recorded, recorded_T)


def draw_texts(
    placement: Placement, num_sequences: int, sequence_tokens: int
) -> SequenceTexts | None:
    """Draw the kind of text of each sequence; ``None`` where the routing tells none apart."""
    experts = placement.experts
    if experts is None or experts.domains is None:
        return None
    drawn = experts.domains.sequences
    trace = RequestTrace(
        arrival_s=np.zeros(num_sequences),
        num_input=np.full(num_sequences, sequence_tokens, dtype=np.int64),
        num_output=np.ones(num_sequences, dtype=np.int64),
        provenance="sequences of a training",
        domains=drawn.domains,
        domain=placement.rng("kinds of text").integers(len(drawn.domains), size=num_sequences),
    )
    return SequenceTexts(drawn, trace, placement.rng("texts"))
