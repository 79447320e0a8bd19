"""Routing of tokens to experts, one policy in a file; all of them return ``topk_ids``, as a real
router does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Ints
from simulator.config.ffns.moe import MoE


@dataclass(frozen=True)
class RecordedSequences:
    """Expert choices of recorded sequences, token by token, which requests can take by position."""

    ids_LTK: NDArray[np.int16]
    """Expert ids of every token in each MoE layer of the model, ``[L, T, K]``; the tokens of a
    sequence follow each other."""
    start_Q: Ints
    """First token of each sequence, ``[Q]``, in order and from 0."""
    domains: tuple[str, ...] = ()
    """Kinds of text that the recording tells apart."""
    domain_Q: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Index of each sequence's kind of text, ``[Q]``; empty without any."""
    request_ids: tuple[str, ...] = ()
    """Identifier of the request that each sequence was recorded of; empty where none are known."""
    next_LTN: NDArray[np.int16] | None = None
    """Next best experts of every token, behind those that it chose, ``[L, T, N]``, best first;
    ``None`` where nobody asks for them, or a recording does not have them."""
    is_drawn: bool = False
    """Whether the sequences were drawn from the popularity of experts in each domain, so that those
    of one domain differ by chance alone, and domains go by number instead of by name."""
    num_stages: int = 1
    """Stages that the popularity in each kind of text passes through, one after another, and from
    the first again; each is a domain of its own, those of one kind of text in a row."""
    stage_s: float = math.inf
    """Seconds from one stage to the next."""

    @property
    def num_kinds(self) -> int:
        """Number of kinds of text whose popularity passes through stages."""
        return len(self.domains) // self.num_stages


class Router(Protocol):
    """Routing policy prepared for one model: whatever is fixed, such as expert popularity, has been
    drawn or read.
    """

    def topk_ids(
        self, layer: int, run_lengths: Ints, rng: np.random.Generator
    ) -> NDArray[np.int16]:
        """Choose the experts of a batch of tokens in one MoE layer.

        Args:
            layer: index among the MoE layers, ``0 <= layer < L``.
            run_lengths: tokens of each run; tokens of one run follow each other in one sequence (a
                prefill chunk), so they may share experts. A decode batch is runs of length 1. ``T =
                run_lengths.sum()``; may be 0.
            rng: the stream to draw from. Same stream state, same ids.

        Returns:
            ``topk_ids_TK``, ``int16 [T, K]``, the ``K`` ids of a row distinct and in ``0 .. E-1``;
            other whole numbers are cast.
        """
        ...


class RouterFacts(NamedTuple):
    """Attributes of a router, all optional."""

    num_domains: int = 1
    """Number of domains that it tells apart (:class:`DomainRouter`)."""
    num_stages: int = 1
    """Stages of each kind of text's popularity, each a domain (:class:`RecordedSequences`)."""
    best_first: bool = False
    """Whether a token's experts come best first."""
    recorded: RecordedSequences | None = None
    """Sequences that requests take their experts from, token by token; ``None`` where they are
    drawn."""


def router_facts(router: Router) -> RouterFacts:
    """Read what is known of a router."""
    said = [name for name in RouterFacts._fields if hasattr(router, name)]
    return RouterFacts(**{name: getattr(router, name) for name in said})


class DomainRouter(Router, Protocol):
    """Router that tells domains apart, so that requests can be routed by theirs."""

    @property
    def num_domains(self) -> int:
        """Number of domains, at least 1."""
        ...

    def draw_sequences(self, rng: np.random.Generator) -> RecordedSequences:
        """Draw sequences of each domain that requests of it can take by position."""
        ...


@runtime_checkable
class RankingRouter(Router, Protocol):
    """Router that knows which experts a token would choose next."""

    @property
    def num_candidates(self) -> int:
        """Number of experts that a token may choose from, at least ``K``."""
        ...

    def rank_choices(self, num_choices: int) -> Self:
        """Make a router of the same tokens whose ``topk_ids`` are ``[T, num_choices]``, best first:
        the ``K`` that this one's tokens choose, then the next best ones.

        Args:
            num_choices: at least ``K``, and at most ``num_candidates``.
        """
        ...


class RoutingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def prepare(self, moe: MoE, num_layers: int, rng: np.random.Generator) -> Router:
        """Fix what does not change from batch to batch (popularity per layer and domain, or the
        recording).

        Raises:
            UserError: if the policy does not fit the model (a recording of other experts, top-k or
                layers).
        """
        ...
