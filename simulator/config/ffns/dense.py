"""Dense feed-forward blocks."""

from __future__ import annotations

from typing import Literal

from simulator.base.quantities import Width
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.ffns import FFN, make_linears, num_biases, read_gate
from simulator.config.linear import Linear


class DenseFFN(FFN):
    """Feed-forward network that every token uses."""

    kind: Literal["dense"]
    """Dense feed-forward block."""
    intermediate_size: Width
    """Numbers of one token's vector inside the block."""
    is_gated: bool = True
    """Whether the block is gated (SwiGLU and the like, three matrices) or not (two: GPT-3,
    Nemotron's squared ReLU)."""
    has_bias: bool = False
    """Whether its matrices have biases."""

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        return make_linears(hidden_size, self.intermediate_size, self.is_gated, "ffn")

    @property
    def inner_width(self) -> int:
        return self.intermediate_size

    @property
    def is_prunable(self) -> bool:
        return True

    @property
    def has_gate(self) -> bool:
        return self.is_gated

    @property
    def has_biases(self) -> bool:
        return self.has_bias

    def num_small_parameters(self, hidden_size: int) -> int:
        if not self.has_bias:
            return 0
        return num_biases(hidden_size, self.intermediate_size, self.is_gated)

    @staticmethod
    def read_config(read: ConfigKeys, layer: str) -> Table:
        """The table that the keys of a ``config.json`` describe.

        Raises:
            UserError: if a key is missing or is not understood.
        """
        width = (
            read.size("intermediate_size_mlp")
            if read.find("intermediate_size_mlp")
            else read.size("intermediate_size")
        )
        return {
            "kind": "dense",
            "intermediate_size": width,
            "is_gated": read_gate(read),
            "has_bias": read.flag("mlp_bias"),
        }
