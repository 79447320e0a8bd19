"""The numbers that a pool's scheduler goes by, as a deployment and a trace say them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.deployment.plan import DeploymentPlan
from simulator.policies.order import OrderPolicy
from simulator.policies.scheduling import Rules
from simulator.workload.traces import RequestTrace


@dataclass(frozen=True)
class Settings:
    """Rules and sizes of one pool; blocks are KV blocks of one data-parallel rank."""

    rules: Rules
    num_blocks: int
    block_tokens: int
    fixed_blocks: int
    """Blocks that every running sequence takes for windows and states."""
    prefix_tokens: int
    """Tokens of a prefix block, 0 where none is shared."""
    finds_full: bool
    """Whether full blocks are known by their content, so that a preempted request finds those of
    its own again that nobody has taken."""
    fills_apart: bool
    """Whether prompts have steps of their own, as SGLang's ``PrefillAdder`` fills them."""
    watermark_blocks: int
    order: OrderPolicy
    accepted: tuple[float, ...]
    """Probability that each token of a draft is kept."""
    draft_seed: int
    tiers: tuple[tuple[int, float, float, float], ...] = ()
    """Memory below the GPU: prefix blocks it holds, seconds to read one, to write one, and until
    the first of a request has come."""
    keeps_caches: bool = False
    """Whether prompts that are computed keep their blocks until their caches are elsewhere."""

    @property
    def prefix_blocks(self) -> int:
        """KV blocks of a prefix block."""
        return self.prefix_tokens // self.block_tokens

    @property
    def wait_tokens(self) -> int:
        """Tokens of a step from which on prompts do not wait for more of them."""
        return math.ceil(self.rules.wait_share * self.rules.token_budget)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks of a sequence."""
        return self.fixed_blocks + math.ceil(num_tokens / self.block_tokens)


def read_settings(plan: DeploymentPlan, trace: RequestTrace) -> Settings:
    """The settings of a pool, for a model whose cache grows with its sequences.

    Where prefix blocks are no whole number of KV blocks, these are cut to the common divisor.
    Recurrent states cannot be shared by prefix.
    """
    capacity, rules = plan.serving.capacity, plan.serving.rules
    has_state = any(mixer.state_elements() for mixer in plan.placement.model.mixers.values())
    may_share = plan.spec.prefix_caching and not has_state
    prefix_tokens = trace.prefix_block_tokens if may_share else 0
    block_tokens = math.gcd(capacity.block_tokens, prefix_tokens)
    cut = capacity.block_tokens // block_tokens
    size = capacity.cache.bytes_per_token * prefix_tokens
    is_alone = plan.placement.layout.attention_dp == 1
    has_lanes = plan.placement.layout.pp > 1
    return Settings(
        rules=rules._replace(
            max_sequences=max(1, rules.max_sequences // plan.placement.layout.pp),
            balance_steps=0 if is_alone else rules.balance_steps,
            wait_steps=rules.wait_steps if is_alone else 0,
            rank_choice=0 if is_alone else rules.rank_choice,
            steps_ahead=0 if has_lanes else rules.steps_ahead,
        ),
        num_blocks=capacity.num_blocks * cut,
        block_tokens=block_tokens,
        fixed_blocks=capacity.sequence_blocks * cut,
        prefix_tokens=prefix_tokens,
        finds_full=rules.finds_full and may_share,
        fills_apart=(rules.output_share > 0 and not rules.mixes_phases and not plan.serving.tiers),
        watermark_blocks=int(rules.watermark * capacity.num_blocks * cut),
        order=plan.serving.order,
        accepted=plan.placement.drafts.accepted,
        draft_seed=int(plan.placement.rng("drafts").integers(1 << 62)),
        tiers=tuple(
            (
                int(tier.memory_bytes // size),
                size / tier.read_bytes_per_s,
                size / tier.write_bytes_per_s,
                tier.latency_s,
            )
            for tier in plan.serving.tiers
            if prefix_tokens
        ),
    )
