"""Speculative decoding: drafts of output tokens that a step verifies at once. A policy states its
drafts as numbers, which the engine's compiled loop follows; one policy in a file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

MOST_DRAFTED = 64
"""Most tokens of a draft: engines draft fewer than ten."""


class Drafts(NamedTuple):
    """Drafts of a policy as numbers: acceptance, and the module that makes them."""

    accepted: tuple[float, ...] = ()
    """Probability that each token of a draft is accepted, given that all before it were; one for
    each token of a draft, none without drafts."""
    num_layers: int = 0
    """Layers of the drafting module, which are like the model's last ones; 0 where drafts are
    looked up instead of computed."""
    vocab_size: int = 0
    """Rows of an output matrix of the module's own; 0 where it uses the model's."""
    launch_s: float = 0.0
    """Seconds in which the kernels of a pass of the module are launched."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a draft, each of which takes a pass of the module."""
        return len(self.accepted)

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

    def drafts(self) -> Drafts:
        """Return the policy as numbers."""
        ...
