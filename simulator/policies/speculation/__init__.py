"""How output tokens are drafted, several of which a step verifies at once. One policy a file; what
it says is numbers, which the engine's compiled loop follows.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Drafts(NamedTuple):
    """What drafts save and take, as numbers."""

    accepted: tuple[float, ...] = ()
    """Probability that each token of a draft is kept, given that all before it were; as many as a
    draft has tokens, none without drafts."""
    pass_share: float = 0.0
    """Seconds in which one more token of all drafts is found, over those of the step that verifies
    them: ``c`` of Leviathan et al. (arXiv:2211.17192)."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a draft."""
        return len(self.accepted)

    @property
    def slowdown(self) -> float:
        """Seconds of a step with its drafts over those without."""
        return 1.0 + self.num_tokens * self.pass_share

    @property
    def mean_kept(self) -> float:
        """Output tokens that a sequence gets in a step on the mean, far from its end.

        >>> Drafts(accepted=(0.5, 0.5)).mean_kept
        1.75
        """
        kept, likely = 1.0, 1.0
        for probability in self.accepted:
            likely *= probability
            kept += likely
        return kept


NO_DRAFTS = Drafts()


class SpeculationPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def drafts(self, num_layers: int) -> Drafts:
        """The policy as numbers, for a model of so many layers."""
        ...
