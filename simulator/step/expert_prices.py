"""What the routed experts of a step cost, and their exchanges: from ``topk_ids`` through placement
and dispatch to seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.config.dtypes import BYTES_PER_ELEMENT, INPUT_BYTES
from simulator.config.ffns.moe import MoE
from simulator.cost.comm import Exchange, Vectors
from simulator.deployment.expert_plan import ExpertPlan
from simulator.deployment.placement import Placement
from simulator.policies.contracts import count_copies
from simulator.policies.dispatch import policy_at, sees
from simulator.policies.token_counts import count_arrivals, count_stays
from simulator.step.expert_choices import ChoosingTokens
from simulator.work.layout import shard
from simulator.work.slots import SlotMap, spread_over_parts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TRAVELLING_BYTES = {"fp8": INPUT_BYTES["fp8_block"]}
"""Of a number on its way to an expert, where it is not the format's own: engines send fp8 with a
scale for 128 numbers."""


@dataclass(frozen=True)
class ExpertStep:
    """The routed experts of one layer in one step."""

    pairs_R: Floats
    """Token-expert pairs that each rank computes."""
    dropped_pairs: int
    """Token-expert pairs that are computed nowhere, since their expert has no room."""
    experts_R: Floats
    """Seconds of each rank's experts."""
    read_bytes: float
    """Expert weights that the mean rank reads: those of the experts it has tokens for."""
    dispatch: Exchange
    combine: Exchange
    pack_R: Floats | None = None
    """Seconds of each rank to pack its rows before they travel; ``None`` where the exchange's own
    kernels do it."""
    unpack_R: Floats | None = None
    """Seconds to add up what comes back."""


def find_imbalance(pairs_R: Floats) -> Floats:
    """Token-expert pairs of the busiest rank over the mean rank's, over the last axis; 1 where none
    are computed.
    """
    mean = np.asarray(pairs_R.mean(axis=-1))
    ones = np.ones_like(mean)
    return np.asarray(np.divide(pairs_R.max(axis=-1), mean, out=ones, where=mean > 0))


class ExpertPrices:
    """Prices of one placement's routed experts."""

    def __init__(self, placement: Placement, experts: ExpertPlan, moe: MoE) -> None:
        self._placement = placement
        self._experts = experts
        self._moe = moe
        self._slot_maps: dict[int, SlotMap] = {}

    def _slots_of(self, layer: int) -> SlotMap:
        """Made when it is asked for: the planner's screen looks at a few layers only."""
        if layer not in self._slot_maps:
            self._slot_maps[layer] = SlotMap(self._experts.placed, layer, self._moe.num_experts)
        return self._slot_maps[layer]

    @cached_property
    def imbalance_L(self) -> Floats:
        """Token-expert pairs of the busiest rank over the mean rank's, over the whole pool before
        any are dropped, ``[L]``.
        """
        pairs_LR = []
        for layer, topk_ids_TK in enumerate(self._experts.topk_ids_LTK):
            slots = self._slots_of(layer)
            pairs_LR.append(slots.rows(slots.slots(topk_ids_TK)).sum(axis=1))
        return find_imbalance(np.array(pairs_LR))

    def steps(self, tokens_d: Ints, places: Sequence[tuple[int, int]]) -> list[ExpertStep]:
        """Price ``tokens_d`` tokens on each data-parallel rank, one step for each of ``places``;
        many at once cost little more.

        Args:
            places: MoE layer, and where in its pool of recorded choices the step's tokens begin.
        """
        placement, experts, moe = self._placement, self._experts, self._moe
        layout, hidden = placement.layout, placement.model.hidden_size
        tokens = ChoosingTokens(experts, layout, tokens_d)
        policy = policy_at(experts.dispatch, -(-tokens.total // layout.num_ranks))
        kernels = getattr(policy, "kernels", "normal")
        out = Vectors(
            kernels=kernels,
            vector_bytes=hidden
            * _TRAVELLING_BYTES.get(
                placement.precision.dispatch, BYTES_PER_ELEMENT[placement.precision.dispatch]
            ),
            tokens_R=np.repeat(tokens_d / layout.tp, layout.tp),
            num_experts=experts.placed.expert_LP.shape[1],
        )
        back = out._replace(vector_bytes=hidden * BYTES_PER_ELEMENT[placement.precision.combine])
        rows, copies, stays, arrivals, dropped = [], [], [], [], []
        for layer, offset in places:
            slots = self._slots_of(layer)
            slot_TK, source_T, scale, dropped_pairs = tokens.choose(
                slots, moe.num_experts, layer, offset
            )
            rows.append(slots.rows(slot_TK, scale))
            dropped.append(dropped_pairs)
            if layout.travels:
                rank_TK = slots.ranks(slot_TK)
                arrivals.append(count_arrivals(rank_TK, slots.num_ranks) * scale)
                rank_TK = spread_over_parts(rank_TK, layout.moe_tp)
                copies.append(
                    count_copies(policy, rank_TK, source_T, placement.fabric.node_R) * scale
                )
                stays.append(count_stays(rank_TK, source_T, layout.num_ranks) * scale)
        if (
            len({rows_RG.shape for rows_RG in rows}) > 1
        ):  # layers whose fullest ranks hold different numbers of experts
            return [step for place in places for step in self.steps(tokens_d, [place])]
        rows_YRG = np.stack(rows)
        num_layers, num_parts, num_groups = rows_YRG.shape
        flat_RG = rows_YRG.reshape(-1, num_groups)
        choices_R = np.full(len(flat_RG), float(tokens.total * moe.top_k))
        if layout.travels and sees(policy) == "rows":
            choices_R = flat_RG.sum(axis=1)
        elif layout.travels and sees(policy) == "arrivals":
            choices_R = np.concatenate(arrivals) * moe.top_k
        flat_s = self._experts_s(flat_RG, choices_R, kernels if layout.travels else None)
        experts_YR = np.repeat(flat_s.reshape(num_layers, num_parts), layout.moe_tp, axis=1)
        pairs_YR = np.repeat(rows_YRG.sum(axis=2), layout.moe_tp, axis=1)
        expert_bytes = (
            moe.num_expert_parameters(hidden)
            / layout.moe_tp
            * BYTES_PER_ELEMENT[placement.precision.experts]
        )
        read_bytes_Y = (rows_YRG > 0).sum(axis=2).mean(axis=1) * expert_bytes
        steps = [
            ExpertStep(
                pairs_R,
                dropped_pairs,
                experts_R,
                float(read_bytes),
                Exchange.nothing(),
                Exchange.nothing(),
            )
            for pairs_R, dropped_pairs, experts_R, read_bytes in zip(
                pairs_YR, dropped, experts_YR, read_bytes_Y, strict=True
            )
        ]
        if not layout.travels:
            return steps
        copies_YSR = np.stack(copies)
        dispatches = placement.comm.exchanges("dispatch", copies_YSR * out.vector_bytes, out)
        combines = placement.comm.exchanges(
            "combine", copies_YSR.transpose(0, 2, 1) * back.vector_bytes, back
        )
        own_R = out.tokens_R * (moe.top_k * layout.moe_tp)
        packings = [
            placement.compute.pack_s(own_R, sent_R, hidden) or (None, None)
            for sent_R in copies_YSR.sum(axis=2) + stays
        ]
        return [
            replace(step, dispatch=dispatch, combine=combine, pack_R=pack_R, unpack_R=unpack_R)
            for step, dispatch, combine, (pack_R, unpack_R) in zip(
                steps, dispatches, combines, packings, strict=True
            )
        ]

    def _experts_s(self, rows_RG: Floats, choices_R: Floats, kernels: str | None) -> Floats:
        """Seconds of each rank's experts, ``[R]``.

        Args:
            choices_R: token-expert pairs of all tokens that the rank's kernels are given, other
                ranks' experts among them.
        """
        placement, moe = self._placement, self._moe
        layout, hidden, compute = placement.layout, placement.model.hidden_size, placement.compute
        pairs_R, dtype = rows_RG.sum(axis=1), placement.precision.experts
        total_R = np.zeros(len(rows_RG))
        for linear in moe.expert_linears(hidden):
            in_features, out_features, _ = shard(linear, layout.moe_tp)
            if (
                moe.num_experts == 1
            ):  # an ordinary matrix product: the dense model and the 1-expert MoE agree
                total_R += compute.gemm_s(
                    pairs_R.astype(np.int64), in_features, out_features, dtype
                )
            else:
                total_R += compute.grouped_gemm_s(
                    rows_RG, in_features, out_features, dtype, moe.num_experts, kernels, choices_R
                )
        touched_R = (rows_RG > 0).sum(axis=1)
        width = moe.intermediate_size / layout.moe_tp
        return total_R + compute.expert_moves_s(
            pairs_R, choices_R, touched_R, hidden, width, dtype, moe.num_experts, kernels
        )
