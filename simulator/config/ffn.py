"""Feed-forward blocks: the half of a layer that treats every token on its own. Dense, or a mixture
of experts.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import ExpertCount, Experts, TopK, Width, WidthOrNone
from simulator.config.linear import Linear


class DenseFFN(Frozen):
    """One feed-forward network that every token uses."""

    kind: Literal["dense"]
    intermediate_size: Width
    is_gated: bool = True
    """SwiGLU-like, with three matrices; false has two (GPT-3, Nemotron's squared ReLU)."""
    has_bias: bool = False

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices that every token passes through."""
        return _ffn_linears(hidden_size, self.intermediate_size, self.is_gated, "ffn")

    def num_parameters(self, hidden_size: int) -> int:
        """All parameters of the block."""
        bias = _ffn_bias(hidden_size, self.intermediate_size, self.is_gated) if self.has_bias else 0
        return sum(linear.num_parameters for linear in self.linears(hidden_size)) + bias

    def num_active_parameters(self, hidden_size: int) -> int:
        """The parameters that one token uses: all of them."""
        return self.num_parameters(hidden_size)


class MoE(Frozen):
    """Routed experts, of which each token uses ``top_k``, plus a shared expert that every token
    uses.
    """

    kind: Literal["moe"]
    num_experts: Experts
    """``E``, routed experts in the layer, before replication."""
    top_k: TopK
    """``K``, routed experts each token uses."""
    intermediate_size: Width
    """``F``, width of one routed expert."""
    is_gated: bool = True
    has_expert_bias: bool = False
    shared_intermediate_size: WidthOrNone = 0
    """Width of all shared experts together; 0 = none."""
    num_shared_experts: ExpertCount = 0
    has_shared_gate: bool = False
    """A learned scalar gate on the shared expert (Qwen)."""
    scoring: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    has_router_bias: bool = False
    """A per-expert bias: of the router's matrix, or added to the scores for balance
    (DeepSeek-V3)."""
    num_groups: Experts = 1
    """Expert groups for group-limited routing (DeepSeek-V3: 8)."""
    num_limited_groups: Experts = 1
    """Groups a token may choose its experts from."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k ({self.top_k}) must be between 1 and num_experts ({self.num_experts})"
            )
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_groups ({self.num_groups}) must divide num_experts ({self.num_experts})"
            )
        if self.num_limited_groups > self.num_groups:
            raise ValueError(
                f"num_limited_groups ({self.num_limited_groups}) must be at most num_groups "
                f"({self.num_groups})"
            )
        if self.top_k > self.num_limited_groups * self.num_experts // self.num_groups:
            raise ValueError(
                f"top_k ({self.top_k}) does not fit in num_limited_groups "
                f"({self.num_limited_groups}) groups"
            )
        if (self.shared_intermediate_size > 0) != (self.num_shared_experts > 0):
            raise ValueError(
                "num_shared_experts and shared_intermediate_size must be given together"
            )
        return self

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices that every token passes through: the router and the shared expert."""
        shared = _ffn_linears(
            hidden_size, self.shared_intermediate_size, self.is_gated, "shared expert"
        )
        gate = (Linear("shared gate", hidden_size, 1, "whole"),) if self.has_shared_gate else ()
        return (
            Linear("router", hidden_size, self.num_experts, "whole"),
            *(shared if self.num_shared_experts else ()),
            *gate,
        )

    def expert_linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices of one routed expert."""
        return _ffn_linears(hidden_size, self.intermediate_size, self.is_gated, "expert")

    def num_expert_parameters(self, hidden_size: int) -> int:
        """Parameters of one routed expert."""
        bias = (
            _ffn_bias(hidden_size, self.intermediate_size, self.is_gated)
            if self.has_expert_bias
            else 0
        )
        return sum(linear.num_parameters for linear in self.expert_linears(hidden_size)) + bias

    def _num_always_used(self, hidden_size: int) -> int:
        bias = self.num_experts if self.has_router_bias else 0
        return sum(linear.num_parameters for linear in self.linears(hidden_size)) + bias

    def num_parameters(self, hidden_size: int) -> int:
        """All parameters of the block: router, every routed expert, shared expert."""
        return self._num_always_used(hidden_size) + self.num_experts * self.num_expert_parameters(
            hidden_size
        )

    def num_active_parameters(self, hidden_size: int) -> int:
        """The parameters that one token uses: router, ``top_k`` routed experts, shared expert."""
        return self._num_always_used(hidden_size) + self.top_k * self.num_expert_parameters(
            hidden_size
        )


def _ffn_linears(
    hidden_size: int, intermediate_size: int, is_gated: bool, name: str
) -> tuple[Linear, ...]:
    up = 2 * intermediate_size if is_gated else intermediate_size
    return (
        Linear(f"{name} up", hidden_size, up, "column"),
        Linear(f"{name} down", intermediate_size, hidden_size, "row"),
    )


def _ffn_bias(hidden_size: int, intermediate_size: int, is_gated: bool) -> int:
    return (2 if is_gated else 1) * intermediate_size + hidden_size


FFN = Annotated[DenseFFN | MoE, Field(discriminator="kind")]
