"""Trial of a user's own policies on a few tokens before anything runs, so that ``check`` refuses
what ``run`` would.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from simulator.base.contracts import is_shipped, method_name
from simulator.base.errors import UserError
from simulator.deployment.expert_plan import ExpertPlan
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.balancing import Asked, Rule, Snapshot
from simulator.policies.contracts import (
    admit_pairs,
    begin_scaling,
    choose_replica,
    count_copies,
    decide_replicas,
    find_interruption,
    list_looks,
    list_turns,
    prepare_balancer,
    shrink_experts,
)
from simulator.policies.dispatch import find_kernel_input, policy_at
from simulator.policies.overflow import take_choices
from simulator.policies.placement import Placed
from simulator.policies.recovery import Loss
from simulator.policies.scaling import PoolLoad, ScalingPolicy
from simulator.work.expert_cache import replay_cache, spread_streams
from simulator.work.slots import SlotMap, spill_tokens
from simulator.workload.traces import RequestTrace

_TOKENS = 8
"""Tokens that overflow and dispatch are tried on, requests that a balancer is, and changes that a
failure policy is asked for: as many as a step of few requests has."""
_SEES = ("arrivals", "rows", "all")
"""Valid values of a dispatch policy's ``sees``."""


def try_policies(plan: DeploymentPlan, trace: RequestTrace) -> None:
    """Ask the plan's own policies once for everything that a run of the requests asks them.

    Raises:
        UserError: naming the policy, and what it must return.
    """
    placement, experts = plan.placement, plan.placement.experts
    if experts is not None:
        _try_overflow(placement, experts)
        _try_replica_choice(placement, experts)
        _try_spilling(experts)
        _try_offload(placement)
        if not is_shipped(type(experts.dispatch)):
            _try_dispatch(placement, experts)
    for changes in plan.list_failures():
        list(islice(changes, _TOKENS))
    if plan.failures and experts and not is_shipped(type(plan.serving.recovery)):
        lost_D = np.arange(placement.layout.attention_dp) == 0
        load_LE = np.ones((len(experts.topk_ids_LTK), experts.num_experts))
        shrink_experts(plan.serving.recovery, Loss(lost_D, experts.placed, load_LE))
        find_interruption(plan.serving.recovery, 0.0)
    plan.find_keys(trace)
    list(islice(list_looks(plan.serving.rebalancing), _TOKENS))
    if not is_shipped(type(plan.serving.scaling)):
        _try_scaling(plan.serving.scaling, plan.serving.replicas)
    if not is_shipped(type(plan.serving.balancing)):
        balancer = prepare_balancer(
            plan.serving.balancing, plan.serving.replicas, np.random.default_rng(0)
        )
        nothing = np.zeros(plan.serving.replicas, dtype=np.int64)
        if isinstance(balancer, Rule):
            list_turns(plan.serving.balancing, balancer, _TOKENS, plan.serving.replicas)
        else:
            lengths = int(trace.num_input[0]), int(trace.num_output[0])
            request = Asked(0, 0.0, *lengths, nothing[:0], trace.find_attributes(0))
            choose_replica(balancer, request, Snapshot(nothing, nothing, nothing, nothing))


def _try_scaling(policy: ScalingPolicy, most: int) -> None:
    """Try decisions on a pool that has nothing to do yet."""
    first = begin_scaling(policy, most)
    looks = islice(list_looks(policy), _TOKENS)
    loads = [PoolLoad(at_s, first, first, 0, num_requests=0, num_tokens=0) for at_s in looks]
    for number in range(len(loads)):
        decide_replicas(policy, loads[: number + 1], most)


def _try_overflow(placement: Placement, experts: ExpertPlan) -> None:
    nodes, moe_tp = placement.node_of_ep_rank, placement.layout.moe_tp
    choice = experts.replica_choice
    slots = SlotMap(experts.placed, 0, experts.num_experts, choice, nodes, moe_tp)
    ids_TJ = take_choices(experts.topk_ids_LTK, experts.next_LTN, 0, np.arange(_TOKENS))
    admit_pairs(experts.overflow, slots.route_tokens(ids_TJ, experts.top_k))


def _try_replica_choice(placement: Placement, experts: ExpertPlan) -> None:
    """Try the choice among copies on a layer that has two of each expert, whatever the plan has."""
    layout, placed = placement.layout, experts.placed
    twice = Placed(
        np.tile(placed.expert_LP[:1], 2), np.tile(placed.rank_LP[:1], 2), placed.num_ranks
    )
    choice, nodes = experts.replica_choice, placement.node_of_ep_rank
    slots = SlotMap(twice, 0, experts.num_experts, choice, nodes, layout.moe_tp)
    slots.slots(experts.topk_ids_LTK[0, :_TOKENS], np.arange(_TOKENS) % layout.num_ranks)


def _try_spilling(experts: ExpertPlan) -> None:
    """Try the spilling of a few tokens, all of which choose as the first one does."""
    slots = SlotMap(experts.placed, 0, experts.num_experts)
    slot_TK = slots.slots(np.repeat(experts.topk_ids_LTK[0, :1], _TOKENS, axis=0))
    spill_tokens(experts.spilling, slots, slot_TK, 1.0)


def _try_offload(placement: Placement) -> None:
    """Try a cache of experts on the steps of a few tokens."""
    offload = placement.offload
    if offload is not None:
        ids_SLX = spread_streams(offload.ids_LTK[:, :_TOKENS], 1)
        replay_cache(offload.rules, ids_SLX, offload.earlier_LTK, offload.num_experts)


def _try_dispatch(placement: Placement, experts: ExpertPlan) -> None:
    whole = experts.dispatch
    if hasattr(whole, "limits") and not hasattr(whole, "policy_for"):
        name = method_name(whole, "policy_for")
        raise UserError(f"{name} is missing: a policy with 'limits' says by it what holds when")
    policy = policy_at(whole, 1)
    if find_kernel_input(policy) not in _SEES:
        name = method_name(policy, "sees").removesuffix("()")
        raise UserError(
            f"{name} must be one of {', '.join(_SEES)}; is {find_kernel_input(policy)!r}"
        )
    ranks = placement.layout.num_ranks
    rank_TK = np.arange(_TOKENS * experts.top_k).reshape(_TOKENS, -1) % ranks
    count_copies(policy, rank_TK, np.arange(_TOKENS) % ranks, placement.fabric.node_R)
