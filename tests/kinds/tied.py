"""Grouped-tied attention (arXiv:2505.21523): one state a head group is key and value at once."""

from simulator.base.quantities import Width
from simulator.config.linear import Linear
from simulator.config.mixers import ContextTerm, Mixer


class TiedAttention(Mixer):
    """Half of a key is the first half of the tied state, the other half has the positions and is
    shared by all groups.
    """

    num_heads: Width
    num_groups: Width
    head_size: Width

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        query, tied = self.num_heads * self.head_size, self.num_groups * self.head_size
        return (
            Linear("query and tied state", hidden_size, query + tied, "column"),
            Linear("positions", hidden_size, self.head_size // 2, "whole"),
            Linear("attention output", query, hidden_size, "row"),
        )

    @property
    def split_heads(self) -> int:
        return self.num_heads

    def context_terms(self) -> tuple[ContextTerm, ...]:
        pair, looked_up = 4.0 * self.num_heads * self.head_size, self.head_size // 2
        cached = float(self.num_groups * self.head_size + looked_up)
        moved = 2.0 * self.num_heads * self.head_size + cached
        return (
            ContextTerm(
                pair,
                pair,
                cached,
                self.num_groups,
                num_heads=self.num_heads,
                prefill_moved_elements=moved,
                decode_moved_elements=moved,
                appended_elements=cached,
            ),
        )
