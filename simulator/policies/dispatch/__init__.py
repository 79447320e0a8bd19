"""Dispatch of tokens to their experts: number of copies, and the ranks they travel between; one
policy in a file. Combine is dispatch reversed: ``copies_SR`` transposed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

from simulator.base.arrays import Floats, Ints


class DispatchPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.

    ``kernels``, an optional field or class variable, names the calibrated constants that its copies
    are priced with; ``sees``, optional too, the token-expert pairs that a rank's kernels are given
    (:func:`find_kernel_input`).
    """

    def copies(self, rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
        """Count the hidden vectors that each rank sends to each other one in the dispatch of one
        MoE layer.

        Args:
            rank_TK: rank of each token's experts, ``[T, K]``; -1 where the pair was dropped.
            source_T: rank each token is on, ``[T]``.
            node_R: fast domain of each rank, ``[R]``.

        Returns:
            ``copies_SR``, ``[R, R]``, the diagonal 0 (what stays on a rank does not travel).
        """
        ...


class Rows(NamedTuple):
    """Rows that a rank sends for its tokens: ``N`` rows, each a hidden vector with the experts of
    its token that it is for.
    """

    token_N: Ints
    """Token of each row."""
    rank_N: Ints
    """Receiving rank; may be the sender itself."""
    choice_NW: Ints
    """Positions among the token's ``K`` experts, padded with -1: an expert of this row has its
    tokens on ``rank_N``."""


@runtime_checkable
class DispatchByTokens(Protocol):
    """Policy that sends few tokens by another method than many."""

    limits: tuple[int, ...]
    """Tokens of the mean rank beyond which the method changes: prices jump there."""

    def policy_for(self, tokens: int) -> DispatchPolicy:
        """Policy where the mean rank has ``tokens``, rounded up."""
        ...


def policy_at(policy: DispatchPolicy, tokens: int) -> DispatchPolicy:
    """Policy that applies where the mean rank has ``tokens``, rounded up."""
    return policy.policy_for(tokens) if isinstance(policy, DispatchByTokens) else policy


def limits_of(policy: DispatchPolicy) -> tuple[int, ...]:
    """Tokens of the mean rank beyond which a policy's method changes."""
    return policy.limits if isinstance(policy, DispatchByTokens) else ()


def kernels_of(policy: DispatchPolicy) -> tuple[str, ...]:
    """Kernels that a policy is priced with, for few tokens and for many."""
    ends = (policy_at(policy, 1), policy_at(policy, 1 << 30))
    return tuple(dict.fromkeys(map(name_kernels, ends)))


def name_kernels(policy: DispatchPolicy) -> str:
    """Name of the kernels that a policy of one method is priced with."""
    return str(getattr(policy, "kernels", "normal"))


def find_kernel_input(policy: DispatchPolicy) -> Literal["arrivals", "rows", "all"]:
    """Find the token-expert pairs that a rank's expert kernels are given, and must iterate over.

    ``arrivals``: tokens that reach the rank, whose choices of other ranks' experts the kernels
    skip; ``rows``: rows of its own experts, laid out by expert; ``all``: all tokens.
    """
    return getattr(policy, "sees", "arrivals")


@runtime_checkable
class ExecutableDispatch(Protocol):
    """Dispatch policy that can also be executed: its copies can be listed, not only counted."""

    def rows(self, rank_TK: Ints, node_R: Ints) -> Rows:
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
