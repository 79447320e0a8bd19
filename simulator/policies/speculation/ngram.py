"""Drafting by looking up what followed the latest tokens earlier in the text (``ngram`` of vLLM,
prompt lookup): drafts cost no pass.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import DraftTokens, Ratio
from simulator.policies.speculation import MOST_DRAFTED, Drafts


class NGram(Frozen):
    """Drafts that are looked up in the text."""

    tokens: DraftTokens | None = None
    """Tokens of a draft (engines' ``num_speculative_tokens``); absent = one, or as many as
    ``accepted`` lists."""
    accepted: (
        Ratio
        | Annotated[tuple[Ratio, ...], Field(strict=False, min_length=1, max_length=MOST_DRAFTED)]
    )
    """Probability that a token of a draft is kept, given that those before it were: one for all, or
    a list by place in the draft. It falls with the place and depends on the text. The per-position
    acceptance rates in vLLM's log are of all drafts instead: divide each by the one before it."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if isinstance(self.accepted, tuple) and self.tokens not in (None, len(self.accepted)):
            raise ValueError(
                f"accepted lists {len(self.accepted)} places of a draft and tokens is "
                f"{self.tokens}; list one for each token, or leave tokens out"
            )
        return self

    def drafts(self) -> Drafts:
        accepted = self.accepted
        listed = accepted if isinstance(accepted, tuple) else (accepted,) * (self.tokens or 1)
        return Drafts(listed)
