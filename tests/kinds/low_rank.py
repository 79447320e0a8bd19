"""A dense block whose matrices are products of two thin ones."""

from simulator.base.quantities import Width
from simulator.config.ffns import FFN
from simulator.config.linear import Linear


class LowRank(FFN):
    """Without a gate."""

    rank: Width
    intermediate_size: Width

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        return (
            Linear("thin up", hidden_size, self.rank, "whole"),
            Linear("wide up", self.rank, self.intermediate_size, "column"),
            Linear("wide down", self.intermediate_size, self.rank, "row"),
            Linear("thin down", self.rank, hidden_size, "whole"),
        )

    @property
    def inner_width(self) -> int:
        return self.intermediate_size
