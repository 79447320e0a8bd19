"""Offloaded experts of a plan: the cache's rules, the rates of the memory below, and the choices
that it is replayed with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.plugins import available, build
from simulator.config.deployment import OffloadSpec
from simulator.config.host import HostSpec
from simulator.cost.offload import OffloadRates, find_rates
from simulator.deployment.expert_plan import ExpertPlan
from simulator.policies.overflow import may_drop
from simulator.work.expert_cache import (
    CacheRules,
    CacheUses,
    begins_empty,
    replay_cache,
    spread_streams,
)

_MOST_STREAMS = 1024
"""Most tokens of a step that are replayed; larger steps use no more experts, and their tokens are
scaled."""
_ALL_SIZES = 32
"""Largest step whose own number of tokens is replayed; larger ones are rounded, to four sizes for
each doubling."""
_WARM_UP = 4
"""One step in so many, the first ones, fills the cache and is not counted."""


@dataclass(frozen=True)
class OffloadPlan:
    """Experts that lie below a GPU's memory."""

    rules: CacheRules
    rates: OffloadRates
    ids_LTK: NDArray[np.int16]
    """Experts that tokens choose, ``[L, T, K]``, neighbours of one sequence behind each other."""
    earlier_LTK: NDArray[np.int16]
    """Experts that earlier tokens chose, which policies learn from."""
    num_experts: int
    bring_from_tokens: int | None = None
    """Fewest tokens of a step in which all missing experts are brought; ``None`` = steps of all
    sizes are alike."""

    @cached_property
    def _replays(self) -> dict[tuple[int, int], CacheUses]:
        return {}

    def with_rates(self, rates: OffloadRates) -> OffloadPlan:
        """Place the same experts on a machine with other rates; which ones a step finds does not
        depend on them, so that replays are shared.
        """
        other = replace(self, rates=rates)
        vars(other)["_replays"] = self._replays
        return other

    def rules_at(self, num_tokens: int) -> CacheRules:
        """Rules that hold in steps of so many tokens."""
        if self.bring_from_tokens is None or num_tokens < self.bring_from_tokens:
            return self.rules
        return self.rules._replace(uploads=self.num_experts)

    def replay(self, num_tokens: int) -> CacheUses:
        """Replay steps of ``num_tokens`` tokens, each of a sequence of its own, behind a warm-up;
        in steps too large for the recording, token-expert pairs are scaled.
        """
        streams, brings = round_tokens(num_tokens), self.rules_at(num_tokens).uploads
        if (streams, brings) not in self._replays:
            ids_SLX, rules = spread_streams(self.ids_LTK, streams), self.rules_at(num_tokens)
            uses = replay_cache(rules, ids_SLX, self.earlier_LTK, self.num_experts)
            first = len(ids_SLX) // _WARM_UP
            self._replays[streams, brings] = CacheUses(*(one[first:] for one in uses))
        uses = self._replays[streams, brings]
        if streams == num_tokens:
            return uses
        pairs, below = (
            np.rint(one * (num_tokens / streams)).astype(np.int64)
            for one in (uses.pairs_SL, uses.below_pairs_SL)
        )
        return uses._replace(pairs_SL=pairs, below_pairs_SL=below)


def round_tokens(num_tokens: int) -> int:
    """Round a step's tokens to a size that is replayed.

    >>> [round_tokens(tokens) for tokens in (1, 31, 33, 100, 9000)]
    [1, 31, 32, 108, 1024]
    """
    if num_tokens <= _ALL_SIZES:
        return max(num_tokens, 1)
    return min(round(2 ** (round(4 * math.log2(num_tokens)) / 4)), _MOST_STREAMS)


def plan_offload(
    spec: OffloadSpec | None,
    experts: ExpertPlan | None,
    host: HostSpec | None,
    num_experts: int,
    place: str,
) -> OffloadPlan | None:
    """Plan the offloading of a deployment that
    :func:`~simulator.deployment.refusals.check_offload` took; ``None`` where its GPU holds
    all experts.

    Args:
        num_experts: experts of a layer.
        place: of the deployment, for errors.

    Raises:
        UserError: if a policy is unknown, or slots stay empty.
    """
    if spec is None or experts is None or host is None or experts.earlier_LTK is None:
        return None
    where = f"{place} [offload]"
    if may_drop(experts.overflow):
        raise UserError(
            f"{where}: caches are replayed with all experts that tokens chose, and an overflow "
            "changes them; leave overflow or offload out"
        )
    rules = CacheRules(
        spec.slots,
        num_experts if spec.uploads is None else spec.uploads,
        build("caching", spec.caching, f"{where} caching"),
        build("prefetching", spec.prefetching, f"{where} prefetching"),
    )
    drawn = str(experts.routing["kind"])
    is_drawn = drawn != "replay" and drawn in available("routing")
    if is_drawn and getattr(rules.prefetching, "learns", False):
        raise UserError(
            f"{where}: prefetching '{spec.prefetching['kind']}' learns which experts follow each "
            f"other from layer to layer, and routing '{drawn}' draws each layer by itself, so it "
            'cannot tell; use prefetching.kind = "next_layer" with its hit_rate, or routing.kind = '
            '"replay" with a recording'
        )
    is_idle = spec.slots > 0 and rules.uploads == 0
    if is_idle and begins_empty(rules, experts.earlier_LTK, num_experts):
        raise UserError(
            f"{where}: with uploads = 0 nothing is ever brought to the {spec.slots} slots, and "
            f"caching '{spec.caching['kind']}' begins with none; use caching.kind = \"popularity\""
        )
    rates = find_rates(host, spec.tier)
    return OffloadPlan(
        rules, rates, experts.runs_LTK, experts.earlier_LTK, num_experts, spec.bring_from_tokens
    )
