"""Speculative decoding: drafts of output tokens that a step verifies at once. A policy states its
drafts as numbers, which the engine's compiled loop follows; one policy in a file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Drafts(NamedTuple):
    """Drafts of a policy as numbers: acceptance and cost."""

    accepted: tuple[float, ...] = ()
    """Probability that each token of a draft is accepted, given that all before it were; one for
    each token of a draft, none without drafts."""
    pass_share: float = 0.0
    """Ratio of the time to find one more token of all drafts to that of the step that verifies
    them: ``c`` of Leviathan et al. (arXiv:2211.17192)."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a draft."""
        return len(self.accepted)

    @property
    def slowdown(self) -> float:
        """Ratio of a step's time with its drafts to its time without."""
        return 1.0 + self.num_tokens * self.pass_share

    @property
    def mean_kept(self) -> float:
        """Mean number of output tokens that a sequence gets in a step, far from its end.

        >>> Drafts(accepted=(0.5, 0.5)).mean_kept
        1.75
        """
        kept, likely = 1.0, 1.0
        for probability in self.accepted:
            likely *= probability
            kept += likely
        return kept


class SpeculationPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def drafts(self, num_layers: int) -> Drafts:
        """Return the policy as numbers, for a model of so many layers."""
        ...
