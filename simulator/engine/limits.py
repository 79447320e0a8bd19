"""Limits of batching, for one plan and one trace."""

from __future__ import annotations

import math

import numpy as np

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.state import Limits
from simulator.workload.traces import RequestTrace


def make_limits(plan: DeploymentPlan, trace: RequestTrace) -> Limits:
    """Collect the limits of batching: the scheduling policy's rules and the cache's blocks.

    Prefix blocks are whole KV blocks: where the trace's do not divide, KV blocks are cut to their
    common divisor. Models that carry a state, or whose every layer keeps a window only, have
    nothing that grows by prefix blocks, and share none.

    The batches that a pipeline keeps in flight have equal parts of a data-parallel rank's limit on
    sequences, as in SGLang; vLLM's limit applies to all of them together, too.
    """
    placement = plan.placement
    capacity = plan.serving.capacity
    has_state = any(mixer.state_elements() for mixer in placement.model.mixers.values())
    grows = capacity.cache.bytes_per_token > 0
    shares_prefixes = (
        plan.spec.prefix_caching and trace.prefix_block_tokens > 0 and grows and not has_state
    )
    prefix_tokens = trace.prefix_block_tokens if shares_prefixes else 0
    block_tokens = (
        math.gcd(capacity.block_tokens, prefix_tokens) if prefix_tokens else capacity.block_tokens
    )
    cut = capacity.block_tokens // block_tokens
    rules, has_groups = plan.serving.rules, placement.layout.attention_dp > 1
    may_find = plan.spec.prefix_caching and grows and not has_state
    return Limits(
        rules=rules._replace(
            max_sequences=max(1, rules.max_sequences // placement.layout.pp),
            finds_preempted=rules.finds_preempted and may_find,
            balance_steps=rules.balance_steps if has_groups else 0,
            wait_steps=0 if has_groups else rules.wait_steps,
        ),
        block_tokens=block_tokens if grows else 1 << 40,
        sequence_blocks=capacity.sequence_blocks * cut,
        prefix_tokens=prefix_tokens,
        prefix_blocks=prefix_tokens // block_tokens,
        watermark_blocks=int(rules.watermark * capacity.num_blocks * cut),
        wait_tokens=math.ceil(rules.wait_share * rules.token_budget),
        accepted=np.array(placement.drafts.accepted, dtype=np.float64),
        draft_seed=int(placement.rng("drafts").integers(1 << 62)),
    )


def scaled_blocks(plan: DeploymentPlan, limits: Limits) -> int:
    """Number of KV blocks of a rank, in blocks of ``limits``."""
    if not plan.serving.capacity.cache.bytes_per_token:
        return plan.serving.capacity.num_blocks
    return plan.serving.capacity.num_blocks * (
        plan.serving.capacity.block_tokens // limits.block_tokens
    )
