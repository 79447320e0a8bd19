"""A dense block beside routed experts (Snowflake Arctic): every token uses both."""

from simulator.base.quantities import Experts, TopK, Width
from simulator.config.ffns import FFN
from simulator.config.ffns.moe import MoE
from simulator.config.linear import Linear


class DenseResidual(FFN):
    """Both are gated."""

    dense_size: Width
    num_experts: Experts
    top_k: TopK
    intermediate_size: Width

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        return (
            Linear("router", hidden_size, self.num_experts, "whole"),
            Linear("residual up", hidden_size, 2 * self.dense_size, "column"),
            Linear("residual down", self.dense_size, hidden_size, "row"),
        )

    @property
    def inner_width(self) -> int:
        return self.dense_size

    @property
    def experts(self) -> MoE:
        return MoE(
            kind="moe",
            num_experts=self.num_experts,
            top_k=self.top_k,
            intermediate_size=self.intermediate_size,
        )
