"""Drafting by a small module beside the model, one token after the other: DeepSeek-V3's multi-token
prediction (arXiv:2412.19437, 2.2), EAGLE (arXiv:2401.15077).
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import DraftTokens, Layers, Ratio
from simulator.policies.speculation import Drafts


class Module(Frozen):
    """Module whose passes are over the same sequences as the verifying step; each of its layers
    takes as long as one of the model's in that step.
    """

    tokens: DraftTokens = 1
    """Tokens of a draft (engines' ``num_speculative_tokens``)."""
    accepted: Ratio
    """Probability that a token of a draft is kept, given that those before it were. Published for
    the first one of DeepSeek-V3's module: 0.85 to 0.90 (arXiv:2412.19437, 5.4.3); it falls with the
    place in the draft and depends on the text."""
    layers: Layers = 1
    """Layers of the drafting module, which are like the model's own."""

    def drafts(self, num_layers: int) -> Drafts:
        return Drafts((self.accepted,) * self.tokens, self.layers / num_layers)
