"""Job of a shard: the part of a plan that real execution needs, small enough to send to every
process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.base.errors import UserError
from simulator.config.dtypes import COMPUTED_HERE
from simulator.config.ffns.moe import MoE
from simulator.config.model import ModelSpec
from simulator.config.sparsity import Pruning, choose_experts
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.deployment.offload_plan import OffloadPlan
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.contracts import admit_pairs
from simulator.policies.dispatch import ExecutableDispatch
from simulator.policies.overflow import (
    OverflowPolicy,
    count_next_choices,
    may_drop,
    take_choices,
)
from simulator.policies.overflow.none import Dropless
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import migration_rules
from simulator.policies.replica_choice import ReplicaChoicePolicy
from simulator.policies.replica_choice.turns import Turns
from simulator.policies.spilling import may_spill
from simulator.runtime.layers.kinds import Admission
from simulator.runtime.layers.transformer import check_executable
from simulator.runtime.layers.weights import WHOLE, Part
from simulator.work.layout import Layout
from simulator.work.slots import SlotMap

TORCH_DTYPES = dict(zip(COMPUTED_HERE, (torch.float32, torch.bfloat16, torch.float16), strict=True))
"""Number formats that shards compute in."""


@dataclass(frozen=True)
class RoutedExperts:
    """Placement of the experts of every MoE layer, and the choices of tokens."""

    topk_ids_LTK: NDArray[np.int16] | None
    """Plan's pool of choices; ``None`` where the router chooses."""
    placed: Placed
    dispatch: ExecutableDispatch
    overflow: OverflowPolicy = field(default_factory=Dropless)
    replica_choice: ReplicaChoicePolicy = field(default_factory=Turns)
    next_LTN: NDArray[np.int16] | None = None
    """Next best experts of the pool's tokens; ``None`` where the overflow policy asks for none."""


@dataclass(frozen=True)
class Job:
    """One deployment to be executed."""

    name: str
    model: ModelSpec
    layout: Layout
    node_R: NDArray[np.int64]
    dtype: str
    dispatch_dtype: str
    combine_dtype: str
    experts: RoutedExperts | None
    pruning: Pruning | None
    seed: int
    weights: str | None
    offload: OffloadPlan | None = None
    """Experts that lie on disk; ``None`` where the rank's memory holds all."""
    texts: tuple[NDArray[np.uint8], ...] = ()
    """Texts whose bytes are read instead of drawn token ids; each step reads the next text in
    turn."""

    @property
    def moe(self) -> MoE | None:
        """Routed experts of the model; ``None`` for a dense one."""
        return self.model.moe

    def dense_part(self, rank: int) -> Part:
        """Rank's part of layers that tensor parallelism splits."""
        return Part(rank % self.layout.tp, self.layout.tp) if self.layout.tp > 1 else WHOLE

    def expert_part(self, rank: int) -> Part:
        """Rank's part of its experts."""
        return (
            Part(rank % self.layout.moe_tp, self.layout.moe_tp) if self.layout.moe_tp > 1 else WHOLE
        )

    def sequences(self, rank: int, num_sequences: int) -> tuple[int, int]:
        """First sequence of the rank's data-parallel group, and the first one behind it."""
        return Part(rank // self.layout.tp, self.layout.attention_dp).bounds(num_sequences)

    def ids_TJ(self, moe_layer: int, offset: int, num_tokens: int) -> NDArray[np.int64] | None:
        """Choices of a layer's tokens, from index ``offset`` of the pool on, as the simulator takes
        them: those of each token, and the next ones where the overflow policy asks for some.
        """
        if self.experts is None or self.experts.topk_ids_LTK is None:
            return None
        if self.offload is not None:
            own_TK = self.offload.ids_LTK[moe_layer, place_streams(offset, num_tokens)]
            return np.asarray(own_TK, dtype=np.int64)
        place_T = (offset + np.arange(num_tokens)) % POOL_TOKENS
        found_TJ = take_choices(
            self.experts.topk_ids_LTK, self.experts.next_LTN, moe_layer, place_T
        )
        return found_TJ.astype(np.int64)

    def slot_map(self, moe_layer: int) -> SlotMap:
        """Slots of a layer's experts.

        Raises:
            ValueError: if the model has no routed experts.
        """
        if self.experts is None or self.moe is None:
            raise ValueError(f"{self.model.name} has no routed experts")
        return SlotMap(
            self.experts.placed,
            moe_layer,
            self.moe.num_experts,
            self.experts.replica_choice,
            self.node_R[:: self.layout.moe_tp],
            self.layout.moe_tp,
        )

    def admission(
        self, slots: SlotMap, source_T: NDArray[np.int64] | None, first_token: int = 0
    ) -> Admission | None:
        """Admission of tokens to the experts of a layer; ``None`` where none are dropped.

        Args:
            slots: the layer's.
            source_T: rank that each token is on, ``[T]``; ``None`` where every rank has every
                token.
            first_token: index of the first token in the whole batch.
        """
        if self.experts is None or self.moe is None or not may_drop(self.experts.overflow):
            return None
        policy, top_k = self.experts.overflow, self.moe.top_k

        def admit(ids_TJ: Tensor) -> Tensor:
            tokens = slots.route_tokens(ids_TJ.cpu().numpy(), top_k, source_T, first_token)
            admitted_TK = admit_pairs(policy, tokens).astype(np.int64)
            return torch.from_numpy(admitted_TK).to(ids_TJ.device)

        num_choices = min(top_k + (count_next_choices(policy) or 0), self.moe.num_candidates)
        return Admission(num_choices, admit)

    def place_experts(self, placed: Placed) -> Job:
        """Copy the job with its experts in other slots.

        Raises:
            ValueError: if the model has no routed experts.
        """
        if self.experts is None:
            raise ValueError(f"{self.model.name} has no routed experts")
        return replace(self, experts=replace(self.experts, placed=placed))

    def shrink(self, placement: Placement) -> Job:
        """Copy the job for the ranks of a placement that has left some out.

        Raises:
            ValueError: if the model has no routed experts.
        """
        if placement.experts is None:
            raise ValueError(f"{self.model.name} has no routed experts")
        shrunk = self.place_experts(placement.experts.placed)
        return replace(shrunk, layout=placement.layout, node_R=placement.fabric.node_R)

    def find_sources(self, step: Step) -> NDArray[np.int64] | None:
        """Rank that each of a step's tokens is on, ``[T]``; ``None`` where every rank has every
        token.
        """
        if not self.layout.travels:
            return None
        firsts = np.arange(self.layout.attention_dp) * self.layout.tp
        bounds = [self.sequences(rank, step.num_sequences) for rank in firsts.tolist()]
        tokens_d = [(end - first) * step.new_tokens for first, end in bounds]
        return np.repeat(firsts, tokens_d)


def make_job(plan: DeploymentPlan, folder: Path) -> Job:
    """Make the job of a plan.

    Args:
        folder: folder that the path of a weights file is relative to.

    Raises:
        UserError: if the plan has something that is only simulated.
    """
    placement = plan.placement
    where, spec, layout = f"deployment '{plan.name}'", plan.spec, placement.layout
    check_executable(placement.model)
    for key, dtype in (
        ("weight_dtype", placement.precision.weights),
        ("weight_dtype", placement.precision.experts),
        ("dispatch_dtype", placement.precision.dispatch),
        ("combine_dtype", placement.precision.combine),
    ):
        if dtype not in TORCH_DTYPES:
            raise UserError(
                f"{where}: {key} = '{dtype}' can be simulated, but not executed; "
                f"use one of {', '.join(TORCH_DTYPES)}"
            )
    if plan.prefill is not None:
        raise UserError(
            f"{where}: has a prefill pool; execution runs one replica that does both, "
            "so leave [prefill] out"
        )
    if migration_rules(plan.serving.rebalancing).asynchronous:
        raise UserError(
            f"{where}: experts that move in the background of steps can be simulated, but not "
            "executed; leave asynchronous out of the rebalancing"
        )
    if choose_experts(spec.pruning) and spec.rebalancing["kind"] != "none":
        raise UserError(
            f"{where}: pruned experts that move can be simulated, but not executed; leave "
            "rebalancing out, or prune dense blocks"
        )
    if spec.kv_tiers:
        raise UserError(f"{where}: kv_tiers can be simulated, but not executed; leave them out")
    if spec.scaling["kind"] != "none":
        raise UserError(f"{where}: scaling can be simulated, but not executed; leave it out")
    if (spec.routing or {}).get("exact"):
        raise UserError(
            f"{where}: requests take their own experts in moesim run only; leave exact out of the "
            "routing"
        )
    if placement.experts is not None and may_spill(placement.experts.spilling):
        raise UserError(f"{where}: spilling can be simulated, but not executed; leave it out")
    if placement.drafts.num_tokens:
        raise UserError(
            f"{where}: drafts can be simulated, but not executed; leave speculation out"
        )
    if layout.pp > 1:
        raise UserError(
            f"{where}: pipelines (pp = {layout.pp}) can be simulated, "
            "but not executed; leave pp out"
        )
    if plan.serving.replicas > 1:
        raise UserError(
            f"{where}: has {plan.serving.replicas} replicas; execution runs one, "
            "so say replicas = 1"
        )
    if layout.tp > 1 and layout.travels:
        raise UserError(
            f"{where}: attention split by tensor and by data at once can be "
            "simulated, but not executed"
        )
    experts = None
    if placement.experts is not None:
        dispatch = placement.experts.dispatch
        if not isinstance(dispatch, ExecutableDispatch):
            raise UserError(
                f"{where}: dispatch '{(spec.dispatch or {}).get('kind')}' has no method 'rows', "
                "which execution needs"
            )
        experts = RoutedExperts(
            placement.experts.topk_ids_LTK,
            placement.experts.placed,
            dispatch,
            placement.experts.overflow,
            placement.experts.replica_choice,
            placement.experts.next_LTN,
        )
        if layout.travels:
            dispatch.rows(np.zeros((0, 1), dtype=np.int64), placement.fabric.node_R)
    if spec.weights is not None and spec.reduction is not None:
        raise UserError(
            f"{where}: weights of experts that are pruned or merged are drawn; leave weights out"
        )
    weights = None if spec.weights is None else str((folder / spec.weights).resolve())
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"{where}: weights = '{spec.weights}': no such file")
    return Job(
        name=plan.name,
        model=placement.model,
        layout=layout,
        node_R=placement.fabric.node_R,
        dtype=placement.precision.weights,
        dispatch_dtype=placement.precision.dispatch,
        combine_dtype=placement.precision.combine,
        experts=experts,
        pruning=spec.pruning,
        seed=placement.seed,
        weights=weights,
        offload=_check_offload(placement, where),
    )


def _check_offload(placement: Placement, where: str) -> OffloadPlan | None:
    """Refuse offloaded experts that are only simulated.

    Raises:
        UserError: if the processor computes some where they lie, or some are fetched ahead.
    """
    offload = placement.offload
    if offload is None:
        return None
    if offload.rules.uploads < offload.num_experts:
        raise UserError(
            f"{where}: experts that are computed where they lie can be simulated, but not "
            "executed; leave uploads out of offload"
        )
    if offload.rules.prefetching.experts > 0:
        raise UserError(
            f"{where}: prefetching can be simulated, but not executed; leave it out of offload"
        )
    return offload


def place_streams(position: int, num_tokens: int) -> NDArray[np.int64]:
    """Find the tokens of a step that serves one token of each of ``num_tokens`` streams, ``[T]``:
    the pool of choices in order, cut into as many streams, all at one position.

    >>> place_streams(3, 2).tolist()
    [3, 2051]
    """
    length = max(POOL_TOKENS // num_tokens, 1)
    return (np.arange(num_tokens) * length + position % length) % POOL_TOKENS


@dataclass(frozen=True)
class Step:
    """One forward pass over new tokens of equal sequences."""

    number: int
    """Number that seeds inputs and caches, together with the job's seed."""
    num_sequences: int
    """Sequences over all ranks."""
    new_tokens: int
    """New tokens of each sequence."""
    context_tokens: int
    """Tokens of each sequence in the cache."""
    offset: int
    """Index of its first token in the pool of expert choices."""
    keeps_output: bool = False
    """Whether hidden vectors and the experts used are returned."""

    @property
    def num_tokens(self) -> int:
        """New tokens over all ranks."""
        return self.num_sequences * self.new_tokens

    @property
    def kind(self) -> str:
        """``"decode"`` or ``"prompt"``."""
        return "decode" if self.new_tokens == 1 and self.context_tokens > 0 else "prompt"
