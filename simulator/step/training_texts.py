"""Texts of a training's sequences, which tokens take their experts from.

A sequence is of one kind of text, as a request is: the few sequences of a micro-batch load the
ranks of an expert-parallel group more unevenly than as many tokens of all kinds, mixed.
"""

from __future__ import annotations

import numpy as np

from simulator.deployment.expert_plan import DrawnDomains
from simulator.deployment.placement import Placement
from simulator.policies.overflow import may_drop
from simulator.step.expert_choices import RecordedTokens
from simulator.step.program import Batch
from simulator.step.request_choices import RequestChoices
from simulator.workload.traces import RequestTrace

_MOST_TOKENS = 16_384
"""Most tokens of a micro-batch that are looked up: one of each of so many equal stretches."""


class SequenceTexts(RequestChoices):
    """Recorded tokens that sequences take their experts from."""

    def list_tokens(self, placement: Placement, batch: Batch) -> RecordedTokens:
        """List the tokens of a micro-batch, or some that stand for all; all of them where some are
        dropped, which each depends on the others for.

        One is drawn from each stretch: evenly spaced ones would be the same few of the recorded
        tokens, which long sequences repeat.
        """
        experts = placement.experts
        assert experts is not None
        recorded_T = self.find_tokens(batch)
        if len(recorded_T) > _MOST_TOKENS and not may_drop(experts.overflow):
            place_T = np.arange(_MOST_TOKENS) + placement.rng("places").random(_MOST_TOKENS)
            recorded_T = recorded_T[(place_T * (len(recorded_T) / _MOST_TOKENS)).astype(np.int64)]
        layout = placement.layout
        return RecordedTokens(experts, layout, batch.tokens_d, self.recorded, recorded_T)


def find_kinds(placement: Placement) -> DrawnDomains | None:
    """Find the kinds of text that use experts of their own; ``None`` where all use the same."""
    kinds = None if placement.experts is None else placement.experts.domains
    return None if kinds is None or kinds.num_kinds == 1 else kinds


def draw_texts(
    placement: Placement, num_sequences: int, sequence_tokens: int
) -> SequenceTexts | None:
    """Draw the kind of text of each sequence; ``None`` where all use the same experts."""
    kinds = find_kinds(placement)
    if kinds is None:
        return None
    drawn = kinds.sequences
    trace = RequestTrace(
        arrival_s=np.zeros(num_sequences),
        num_input=np.full(num_sequences, sequence_tokens, dtype=np.int64),
        num_output=np.ones(num_sequences, dtype=np.int64),
        provenance="sequences of a training",
        domains=drawn.domains,
        domain=placement.rng("kinds of text").integers(len(drawn.domains), size=num_sequences),
    )
    return SequenceTexts(drawn, trace, placement.rng("texts"))
