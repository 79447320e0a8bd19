"""Price of a step's routed experts and their exchanges, in a GPU's memory or below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.dtypes import BYTES_PER_ELEMENT, INPUT_BYTES
from simulator.config.ffns.moe import MoE
from simulator.config.sparsity import choose_experts
from simulator.cost.comm import Exchange, Vectors
from simulator.cost.compute import ComputeModel
from simulator.cost.offload import ExpertSize, offloaded_s
from simulator.deployment.expert_plan import ExpertPlan
from simulator.deployment.offload_plan import OffloadPlan
from simulator.deployment.placement import Placement
from simulator.policies.contracts import count_copies
from simulator.policies.dispatch import DispatchPolicy, find_kernel_input, name_kernels, policy_at
from simulator.policies.messages import Messages
from simulator.policies.spilling import may_spill
from simulator.policies.token_counts import count_arrivals, count_stays
from simulator.step.expert_choices import ChoosingTokens
from simulator.work.expert_cache import CacheUses
from simulator.work.layout import shard
from simulator.work.memory import expert_bytes
from simulator.work.slots import SlotMap, SlotTable, spill_tokens, spread_over_parts


class OffloadPrices:
    """Prices of one placement's offloaded experts.

    Which experts a step finds in the cache depends on the steps before it; a price is the mean over
    the steps of a replay with as many tokens.
    """

    def __init__(
        self, placement: Placement, offload: OffloadPlan, beside_s: Callable[[int], float]
    ) -> None:
        """Prepare prices.

        Args:
            beside_s: seconds of a layer's other kernels by number of tokens.
        """
        model = placement.model
        assert model.moe is not None, "a dense model offloads nothing"
        self._offload, self._beside_s = offload, beside_s
        self._size = ExpertSize(
            expert_bytes(model, placement.layout, placement.precision, placement.pruning),
            2.0 * model.moe.num_expert_parameters(model.hidden_size),
        )

    def price_layers(
        self, gpu_YR: NDArray[np.float64], num_tokens: int, layers: Sequence[int]
    ) -> NDArray[np.float64]:
        """Seconds ``[Y, R]`` of the experts of several layers.

        Args:
            gpu_YR: seconds with all experts in the GPU's memory.
            layers: MoE layer of each row.
        """
        if num_tokens == 0:
            return gpu_YR
        uses, beside_s = self._offload.replay(num_tokens), self._beside_s(num_tokens)
        return np.stack(
            [
                np.full_like(gpu_R, self._price_layer(uses, float(gpu_R[0]), beside_s, layer))
                for gpu_R, layer in zip(gpu_YR, layers, strict=True)
            ]
        )

    def _price_layer(self, uses: CacheUses, gpu_s: float, beside_s: float, layer: int) -> float:
        # The layer itself behind the one before it, during which experts are fetched ahead.
        pair = CacheUses(*(one[:, [layer - 1, layer]] for one in uses))
        seconds = offloaded_s(pair, gpu_s, beside_s, self._size, self._offload.rates)
        return float(seconds[:, 1].mean())


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TRAVELLING_BYTES = {**BYTES_PER_ELEMENT, "fp8": INPUT_BYTES["fp8_block"]}
"""Bytes of an element on its way to an expert: engines send fp8 with one scale for 128 elements."""


@dataclass(frozen=True)
class ExpertStep:
    """The routed experts of one layer in one step."""

    pairs_R: Floats
    """Token-expert pairs that each rank computes, ``[R]``."""
    dropped_pairs: int
    """Token-expert pairs that no rank computes, since their expert is over its capacity."""
    rerouted_pairs: int
    """Token-expert pairs that another expert computes than the one that was chosen."""
    experts_R: Floats
    """Seconds that each rank's experts compute, ``[R]``."""
    read_bytes: float
    """Bytes of expert weights that the mean rank reads: those of the experts it has tokens for."""
    dispatch: Exchange
    """Exchange that takes tokens to their experts."""
    combine: Exchange
    """Exchange that brings expert outputs back."""
    pack_R: Floats | None = None
    """Seconds of each rank to pack its rows before they travel, ``[R]``; ``None`` where the
    exchange's own kernels do it."""
    unpack_R: Floats | None = None
    """Seconds of each rank to add up the outputs that come back, ``[R]``; ``None`` where the
    exchange's own kernels do it."""


def find_imbalance(pairs_R: Floats) -> Floats:
    """Ratio of the busiest rank's token-expert pairs to the mean rank's, over the last axis; 1
    where none are computed.
    """
    mean = np.asarray(pairs_R.mean(axis=-1))
    ones = np.ones_like(mean)
    return np.asarray(np.divide(pairs_R.max(axis=-1), mean, out=ones, where=mean > 0))


class _Counts(NamedTuple):
    """Tokens of one step on their way through one layer's experts."""

    rows_RG: Floats
    """Tokens of every slot of each expert-parallel rank (``G`` slots of a rank)."""
    dropped_pairs: int
    """Token-expert pairs that no rank computes."""
    rerouted_pairs: int
    """Token-expert pairs that another expert computes than the one that was chosen."""
    arrivals_P: Floats
    """Tokens that have experts on each expert-parallel rank."""
    copies: Messages
    """Hidden vectors sent from rank to rank."""
    stays_R: Floats
    """Tokens of each rank that have experts on that same rank."""
    weights: Messages | None = None
    """Bytes of experts' weights sent from rank to rank beside the tokens; ``None`` where nothing
    is spilled."""


class _Ways(NamedTuple):
    """Dispatch, combine and packing of one layer: the last fields of an :class:`ExpertStep`."""

    dispatch: Exchange
    combine: Exchange
    pack_R: Floats | None = None
    unpack_R: Floats | None = None


def _dispatch_bytes(count: _Counts, vector_bytes: float) -> Messages:
    """Bytes that travel before the experts compute: tokens, and weights where any are spilled."""
    tokens = count.copies.times(vector_bytes)
    if count.weights is None:
        return tokens
    return Messages.from_matrix(tokens.matrix_SR + count.weights.matrix_SR)


class ExpertPrices:
    """Prices of one placement's routed experts and their exchanges."""

    def __init__(
        self,
        placement: Placement,
        experts: ExpertPlan,
        moe: MoE,
        offload: OffloadPrices | None = None,
    ) -> None:
        """Prepare prices.

        Args:
            offload: prices of experts that lie below the GPU's memory; ``None`` where it holds all.
        """
        self._placement, self._offload = placement, offload
        self._computes = (placement.compute, *placement.others.values())
        self._experts = experts
        self._moe = moe
        self._slot_maps: dict[int, SlotMap] = {}

    def _slots_of(self, layer: int) -> SlotMap:
        """Slots of a layer, built on first use: the planner's screen looks at a few layers only."""
        if layer not in self._slot_maps:
            self._slot_maps[layer] = SlotMap(
                self._experts.placed,
                layer,
                self._moe.num_experts,
                self._experts.replica_choice,
                self._placement.node_of_ep_rank,
                self._placement.layout.moe_tp,
            )
        return self._slot_maps[layer]

    @cached_property
    def imbalance_L(self) -> Floats:
        """Ratio of the busiest rank's token-expert pairs to the mean rank's, over the whole pool of
        recorded choices before any are dropped, ``[L]``.
        """
        pairs_LR = []
        for layer, topk_ids_TK in enumerate(self._experts.topk_ids_LTK):
            slots = self._slots_of(layer)
            pairs_LR.append(slots.rows(slots.slots(topk_ids_TK)).sum(axis=1))
        return find_imbalance(np.array(pairs_LR))

    @cached_property
    def expert_bytes(self) -> float:
        """Bytes of one expert's weights on one rank."""
        placement = self._placement
        return expert_bytes(
            placement.model, placement.layout, placement.precision, placement.pruning
        )

    def steps(self, tokens_d: Ints, places: Sequence[tuple[int, int]]) -> list[ExpertStep]:
        """Price ``tokens_d`` tokens on each data-parallel rank at each of ``places``; pricing many
        at once costs little more than one.

        Args:
            places: MoE layer, and index of the step's first token in its pool of recorded choices.
        """
        layout = self._placement.layout
        return self.price_tokens(ChoosingTokens(self._experts, layout, tokens_d), places)

    def price_tokens(
        self, tokens: ChoosingTokens, places: Sequence[tuple[int, int]]
    ) -> list[ExpertStep]:
        """Price the tokens of a step, as :meth:`steps` does by their number."""
        policy = policy_at(
            self._experts.dispatch, -(-tokens.total // self._placement.layout.num_ranks)
        )
        counts = [self._count(tokens, policy, *place) for place in places]
        if len({one.rows_RG.shape for one in counts}) > 1:
            # Layers whose fullest ranks hold different numbers of experts.
            return [step for place in places for step in self.price_tokens(tokens, [place])]
        return self._price(tokens.tokens_d, policy, counts, [layer for layer, _ in places])

    def _count(
        self, tokens: ChoosingTokens, policy: DispatchPolicy, layer: int, offset: int
    ) -> _Counts:
        """Count the tokens of one step at every stop on their way through one layer."""
        placement, slots = self._placement, self._slots_of(layer)
        layout, node_R = placement.layout, placement.fabric.node_R
        chosen = tokens.choose(slots, layer, offset)
        slot_TK, source_T, scale = chosen[:3]
        table: SlotTable = slots
        weights = None
        if may_spill(self._experts.spilling):
            slot_TK, table, experts_SR = spill_tokens(self._experts.spilling, slots, slot_TK, scale)
            parts_SR: Floats = np.kron(experts_SR, np.eye(layout.moe_tp)).astype(np.float64)
            weights = Messages.from_matrix(parts_SR).times(self.expert_bytes)
        changed = (chosen.dropped_pairs, chosen.rerouted_pairs)
        rows_RG = table.rows(slot_TK, scale)
        if not layout.travels:
            all_P = np.full(slots.num_ranks, float(tokens.total))
            return _Counts(rows_RG, *changed, all_P, Messages.empty(), all_P)
        rank_TK = table.ranks(slot_TK)
        arrivals_P = count_arrivals(rank_TK, slots.num_ranks) * scale
        rank_TK = spread_over_parts(rank_TK, layout.moe_tp)
        copies = Messages.from_matrix(count_copies(policy, rank_TK, source_T, node_R))
        stays_R = count_stays(rank_TK, source_T, layout.num_ranks) * scale
        return _Counts(rows_RG, *changed, arrivals_P, copies.times(scale), stays_R, weights)

    def _price(
        self,
        tokens_d: Ints,
        policy: DispatchPolicy,
        counts: Sequence[_Counts],
        layers: Sequence[int],
    ) -> list[ExpertStep]:
        """Price the experts of several layers whose ranks hold equally many slots."""
        placement, moe_tp = self._placement, self._placement.layout.moe_tp
        rows_YPG = np.stack([one.rows_RG for one in counts])
        seen_YP = self._count_seen(int(tokens_d.sum()), policy, counts, rows_YPG)
        kernels = name_kernels(policy) if placement.layout.travels else None
        num_groups = rows_YPG.shape[2]
        rows_RG = rows_YPG.reshape(-1, num_groups)

        def price(kind: int) -> Floats:
            flat_s = self._experts_s(self._computes[kind], rows_RG, seen_YP.ravel(), kernels)
            return np.repeat(flat_s.reshape(seen_YP.shape), moe_tp, axis=1)

        experts_YR = placement.combine_kinds(price)
        if self._offload is not None:
            experts_YR = self._offload.price_layers(experts_YR, int(tokens_d.sum()), layers)
        return [
            ExpertStep(
                pairs_R,
                one.dropped_pairs,
                one.rerouted_pairs,
                experts_R,
                float(read_bytes),
                *ways,
            )
            for one, pairs_R, experts_R, read_bytes, ways in zip(
                counts,
                np.repeat(rows_YPG.sum(axis=2), moe_tp, axis=1),
                experts_YR,
                (rows_YPG > 0).sum(axis=2).mean(axis=1) * self.expert_bytes,
                self._price_ways(tokens_d, policy, counts),
                strict=True,
            )
        ]

    def _count_seen(
        self, num_tokens: int, policy: DispatchPolicy, counts: Sequence[_Counts], rows_YPG: Floats
    ) -> Floats:
        """Token-expert pairs that the expert kernels of each expert-parallel rank are given, ``[Y,
        P]``.
        """
        seen = find_kernel_input(policy) if self._placement.layout.travels else "all"
        if seen == "rows":
            return np.asarray(rows_YPG.sum(axis=2))
        if seen == "arrivals":
            return np.array([one.arrivals_P for one in counts]) * self._moe.top_k
        return np.full(rows_YPG.shape[:2], float(num_tokens * self._moe.top_k))

    def _price_ways(
        self, tokens_d: Ints, policy: DispatchPolicy, counts: Sequence[_Counts]
    ) -> list[_Ways]:
        """Price dispatch, combine and packing of each layer."""
        placement, layout = self._placement, self._placement.layout
        if not layout.travels:
            return [_Ways(Exchange.empty(), Exchange.empty())] * len(counts)
        out = self._vectors(tokens_d, policy, placement.precision.dispatch, _TRAVELLING_BYTES)
        back = self._vectors(tokens_d, policy, placement.precision.combine, BYTES_PER_ELEMENT)
        dispatches = placement.comm.exchanges(
            "dispatch", [_dispatch_bytes(one, out.vector_bytes) for one in counts], out
        )
        combines = placement.comm.exchanges(
            "combine", [one.copies.reverse().times(back.vector_bytes) for one in counts], back
        )
        packings = [self._pack(out.tokens_R, counts[0])]
        if packings[0][0] is None:  # the exchange's own kernels do it, whatever travels
            packings *= len(counts)
        else:
            packings += [self._pack(out.tokens_R, one) for one in counts[1:]]
        return [
            _Ways(dispatch, combine, *packing)
            for dispatch, combine, packing in zip(dispatches, combines, packings, strict=True)
        ]

    def _vectors(
        self, tokens_d: Ints, policy: DispatchPolicy, dtype: str, bytes_of: Mapping[str, float]
    ) -> Vectors:
        layout = self._placement.layout
        return Vectors(
            kernels=name_kernels(policy),
            vector_bytes=self._placement.model.hidden_size * bytes_of[dtype],
            tokens_R=np.repeat(tokens_d / layout.tp, layout.tp),
            num_experts=self._experts.placed.expert_LP.shape[1],
        )

    def _pack(self, tokens_R: Floats, count: _Counts) -> tuple[Floats, Floats] | tuple[None, None]:
        """Seconds of each rank to pack its rows, and to add up the outputs that come back."""
        placement = self._placement
        rows_R = count.copies.sum_by_rank(placement.fabric.node_R).sent_R + count.stays_R
        own_R = tokens_R * (self._moe.top_k * placement.layout.moe_tp)
        hidden = placement.model.hidden_size
        packed = [compute.pack_s(own_R, rows_R, hidden) for compute in self._computes]
        known = [np.stack(one) for one in packed if one is not None]
        if len(known) < len(packed):
            return None, None
        pack_R, unpack_R = placement.combine_kinds(lambda kind: known[kind])
        return pack_R, unpack_R

    def _experts_s(
        self, compute: ComputeModel, rows_RG: Floats, choices_R: Floats, kernels: str | None
    ) -> Floats:
        """Seconds that each rank's experts compute, ``[R]``.

        Args:
            choices_R: token-expert pairs of all tokens that the rank's kernels are given, including
                those of other ranks' experts.
        """
        placement, moe = self._placement, self._moe
        layout, hidden = placement.layout, placement.model.hidden_size
        pairs_R, dtype = rows_RG.sum(axis=1), placement.precision.experts
        total_R = np.zeros(len(rows_RG))
        pruning = choose_experts(placement.pruning)
        pruned: dict[str, Any] = {} if pruning is None else {"pruning": pruning}
        for linear in moe.expert_linears(hidden):
            in_features, out_features, _ = shard(linear, layout.moe_tp)
            matrix = in_features, out_features, dtype
            if moe.num_experts == 1 and pruning is None:
                # An ordinary matrix product: the dense model and the 1-expert MoE agree.
                total_R += compute.gemm_s(pairs_R.astype(np.int64), *matrix)
            else:
                total_R += compute.grouped_gemm_s(
                    rows_RG, *matrix, moe.num_experts, kernels, choices_R, **pruned
                )
        touched_R = (rows_RG > 0).sum(axis=1)
        width = moe.intermediate_size / layout.moe_tp
        return total_R + compute.expert_moves_s(
            pairs_R, choices_R, touched_R, hidden, width, dtype, moe.num_experts, kernels
        )
