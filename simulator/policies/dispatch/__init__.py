"""How many copies of a token travel to its experts, and between which ranks. One policy a file.

The way back (combine) is the way there reversed: ``copies_SR`` transposed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class DispatchPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys.

    ``kernels``, a field or a class variable that it may have, names the constants that its copies
    are priced with; ``sees`` likewise what a rank's kernels are given of the step (:func:`sees`).
    """

    def copies(
        self, rank_TK: NDArray[np.int64], source_T: NDArray[np.int64], node_R: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Hidden vectors that each rank sends to each other one in the dispatch of one MoE layer.

        Args:
            rank_TK: rank of each token's experts, ``[T, K]``; -1 where the pair was dropped.
            source_T: rank each token is on, ``[T]``.
            node_R: fast domain of each rank, ``[R]``.

        Returns:
            ``copies_SR``, ``[R, R]``, the diagonal 0 (what stays on a rank does not travel).
        """
        ...


class Rows(NamedTuple):
    """What a rank really sends for its tokens: ``N`` rows, each a hidden vector and which of its
    token's experts it is for.
    """

    token_N: NDArray[np.int64]
    rank_N: NDArray[np.int64]
    """Receiving rank; may be the sender itself."""
    choice_NW: NDArray[np.int64]
    """Places among the token's ``K`` experts, padded with -1: an expert of this row has its tokens
    on ``rank_N``."""


@runtime_checkable
class DispatchByTokens(Protocol):
    """A policy that sends few tokens in another way than many."""

    limits: tuple[int, ...]
    """Tokens of the mean rank beyond which it sends in another way: prices jump there."""

    def at(self, tokens: int) -> DispatchPolicy:
        """How it sends where the mean rank has ``tokens``, rounded up."""
        ...


def policy_at(policy: DispatchPolicy, tokens: int) -> DispatchPolicy:
    """How a policy sends where the mean rank has ``tokens``, rounded up."""
    return policy.at(tokens) if isinstance(policy, DispatchByTokens) else policy


def limits_of(policy: DispatchPolicy) -> tuple[int, ...]:
    """Tokens of the mean rank beyond which a policy sends in another way."""
    return policy.limits if isinstance(policy, DispatchByTokens) else ()


def kernels_of(policy: DispatchPolicy) -> tuple[str, ...]:
    """The kernels that a policy is priced with, for few tokens and for many."""
    ends = (policy_at(policy, 1), policy_at(policy, 1 << 30))
    return tuple(dict.fromkeys(str(getattr(end, "kernels", "normal")) for end in ends))


def sees(policy: DispatchPolicy) -> Literal["arrivals", "rows", "all"]:
    """What a rank's kernels for experts are given, and so must walk over.

    The tokens that reach it, whose choices of other ranks' experts they skip; the rows of its own
    experts, laid out by expert; or all tokens.
    """
    found: Literal["arrivals", "rows", "all"] = getattr(policy, "sees", "arrivals")
    return found


@runtime_checkable
class ExecutableDispatch(Protocol):
    """A dispatch policy that can also be executed: its copies can be listed, not only counted."""

    def rows(self, rank_TK: NDArray[np.int64], node_R: NDArray[np.int64]) -> Rows:
        """List what a rank sends for its tokens.

        Counted by receiving rank, without what stays on the sender, they are the sender's line of
        ``copies``.

        Args:
            rank_TK: rank of each token's experts, ``[T, K]``; -1 where the pair was dropped.
            node_R: fast domain of each rank, ``[R]``.

        Raises:
            UserError: if the policy forwards between nodes, which rows cannot say.
        """
        ...
