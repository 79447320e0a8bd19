"""Expert slots that a step's tokens choose in one layer.

Where some choices are dropped, every token of the step is looked up. Otherwise a step with more
tokens than the pool of recorded choices is represented by a sample of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.expert_plan import POOL_TOKENS, ExpertPlan
from simulator.policies.contracts import admit_pairs
from simulator.policies.overflow import may_drop, take_choices
from simulator.policies.routing import RecordedSequences
from simulator.work.layout import Layout
from simulator.work.slots import SlotMap

Ints = NDArray[np.int64]


class Choices(NamedTuple):
    """Choices of a batch's tokens in one layer."""

    slot_TK: Ints
    """Slot of every token-expert pair, -1 where it was dropped."""
    source_T: Ints
    """Rank that each token is on, ``[T]``."""
    scale: float
    """Tokens of the step that each token here stands for."""
    dropped_pairs: int = 0
    """Token-expert pairs that are dropped."""
    rerouted_pairs: int = 0
    """Token-expert pairs that another expert computes than the one that was chosen."""


class ChoosingTokens:
    """Tokens of one step, ``tokens_d`` on each data-parallel rank, that are about to choose
    experts.
    """

    def __init__(self, experts: ExpertPlan, layout: Layout, tokens_d: Ints) -> None:
        self._experts, self._layout, self.tokens_d = experts, layout, tokens_d
        self.total = int(tokens_d.sum())
        self._top_k: int = experts.topk_ids_LTK.shape[2]
        self._sampled = min(self.total, POOL_TOKENS)

    def choose(self, slots: SlotMap, layer: int, offset: int) -> Choices:
        """Look up the slots that the tokens choose in a layer.

        Args:
            slots: the layer's slots.
            offset: index of the first token in the layer's pool of recorded choices. Indices beyond
                the pool's end wrap around.
        """
        if may_drop(self._experts.overflow):
            ids_TJ = self._take_choices(layer, offset)
            source_T = self._source_T if self._layout.travels else None
            tokens = slots.route_tokens(ids_TJ, self._top_k, source_T)
            kept_TK = admit_pairs(self._experts.overflow, tokens)
            num_changed = int((kept_TK != ids_TJ[:, : self._top_k]).sum())
            if num_changed:
                dropped = int((kept_TK < 0).sum())
                slot_TK = slots.slots(kept_TK, source_T)
                return Choices(slot_TK, self._source_T, 1.0, dropped, num_changed - dropped)
        ids_TK = self._take_ids(layer, offset, self._sampled)
        scale = self.total / max(self._sampled, 1)
        slot_TK = slots.slots(ids_TK, self._sampled_source_T if self._layout.travels else None)
        return Choices(slot_TK, self._sampled_source_T, scale)

    def _take_ids(self, layer: int, offset: int, count: int) -> NDArray[np.int16]:
        pool_TK: NDArray[np.int16] = self._experts.topk_ids_LTK[layer]
        begin = self._begin_run(offset)
        if begin + count <= POOL_TOKENS:
            return pool_TK[begin : begin + count]
        return pool_TK.take(np.arange(begin, begin + count), axis=0, mode="wrap")

    def _begin_run(self, offset: int) -> int:
        """Index in the pool at which the run around ``offset`` begins."""
        begin = offset % POOL_TOKENS
        return begin - begin % self._experts.run_tokens

    def _take_choices(self, layer: int, offset: int) -> NDArray[np.int16]:
        """Experts that all tokens chose, and the next ones where they are known, ``[T, J]``."""
        place_T = (self._begin_run(offset) + np.arange(self.total)) % POOL_TOKENS
        experts = self._experts
        return take_choices(experts.topk_ids_LTK, experts.next_LTN, layer, place_T)

    @cached_property
    def _source_T(self) -> Ints:
        return self._find_sources(self.total)

    @cached_property
    def _sampled_source_T(self) -> Ints:
        return self._find_sources(self._sampled)

    def _find_sources(self, count: int) -> Ints:
        """Rank of each of ``count`` tokens: a data-parallel rank's tokens are spread over its
        tensor-parallel ranks.
        """
        layout, tokens_d = self._layout, self.tokens_d
        tokens_R = np.repeat(tokens_d // layout.tp, layout.tp)
        extra = np.repeat(tokens_d % layout.tp, layout.tp) > np.tile(
            np.arange(layout.tp), layout.attention_dp
        )
        ends = np.cumsum(tokens_R + extra)
        # Evenly spaced tokens stand for all when there are more than the pool holds.
        wanted = ((np.arange(count) + 0.5) * (ends[-1] / max(count, 1))).astype(np.int64)
        source_T: Ints = np.searchsorted(ends, wanted, side="right").astype(np.int64)
        return source_T


class RecordedTokens(ChoosingTokens):
    """Tokens of one step whose requests take their experts from recorded sequences."""

    def __init__(
        self,
        experts: ExpertPlan,
        layout: Layout,
        tokens_d: Ints,
        recorded: RecordedSequences,
        recorded_T: Ints,
    ) -> None:
        """Prepare the tokens.

        Args:
            recorded_T: recorded token that each token of the step takes its experts from, ``[T]``,
                data-parallel rank after rank; fewer stand for as many equal stretches of tokens,
                and need a policy that drops none.
        """
        super().__init__(experts, layout, tokens_d)
        self._sampled = len(recorded_T)
        self._recorded, self._recorded_T = recorded, recorded_T

    def _take_ids(self, layer: int, offset: int, count: int) -> NDArray[np.int16]:
        ids_TK: NDArray[np.int16] = self._recorded.ids_LTK[layer, self._recorded_T]
        return ids_TK

    def _take_choices(self, layer: int, offset: int) -> NDArray[np.int16]:
        recorded = self._recorded
        return take_choices(recorded.ids_LTK, recorded.next_LTN, layer, self._recorded_T)


class UniformTokens(ChoosingTokens):
    """Tokens of one step that choose every slot with the same probability: what is uneven then is
    chance.
    """

    def __init__(
        self, experts: ExpertPlan, layout: Layout, tokens_d: Ints, rng: np.random.Generator
    ) -> None:
        super().__init__(experts, layout, tokens_d)
        self._rng = rng

    def choose(self, slots: SlotMap, layer: int, offset: int) -> Choices:
        chances_TP = self._rng.random((self._sampled, len(slots.rank_P)), dtype=np.float32)
        slot_TK = np.argpartition(chances_TP, self._top_k - 1, axis=1)[:, : self._top_k]
        scale = self.total / max(self._sampled, 1)
        return Choices(slot_TK.astype(np.int64), self._sampled_source_T, scale, 0)
