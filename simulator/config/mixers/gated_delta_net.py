"""Gated linear attention with the delta rule: a fixed state instead of a cache."""

from __future__ import annotations

from typing import Literal, Self

from simulator.base.quantities import Heads, TokenExtent, Width
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.linear import Linear
from simulator.config.mixers import Mixer, count_heads


class GatedDeltaNet(Mixer):
    """Gated linear attention with the delta rule (Qwen3-Next, Qwen3.5; arXiv:2412.06464): a fixed
    state instead of a KV cache.
    """

    kind: Literal["gated_delta_net"]
    """Gated linear attention with the delta rule."""
    num_key_heads: Heads
    """Number of heads of queries and keys."""
    num_value_heads: Heads
    """Number of heads of values."""
    key_head_size: Width
    """Numbers in a query or key."""
    value_head_size: Width
    """Numbers in a value."""
    conv_size: TokenExtent
    """Tokens that the short convolution sees."""

    @property
    def _channels(self) -> int:
        return (
            2 * self.num_key_heads * self.key_head_size
            + self.num_value_heads * self.value_head_size
        )

    @property
    def _state(self) -> int:
        return self.num_value_heads * self.key_head_size * self.value_head_size

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        key = self.num_key_heads * self.key_head_size
        value = self.num_value_heads * self.value_head_size
        return (
            Linear("qkvz", hidden_size, 2 * key + 2 * value, "column"),
            Linear("decay and step", hidden_size, 2 * self.num_value_heads, "column"),
            Linear("attention output", value, hidden_size, "row"),
        )

    @property
    def split_heads(self) -> int:
        return self.num_value_heads

    def scale_heads(self, factor: float) -> Self:
        """Heads of values grow, and those of keys with them."""
        keys = count_heads(self.num_key_heads, factor)
        values = keys * self.num_value_heads // self.num_key_heads
        return self.model_copy(update={"num_key_heads": keys, "num_value_heads": values})

    def num_small_parameters(self, hidden_size: int) -> int:
        return (
            self.norms
            + self._channels * self.conv_size
            + 2 * self.num_value_heads
            + self.value_head_size
        )

    def state_elements(self) -> int:
        return self._state + self._channels * (self.conv_size - 1)

    def recurrent_flops_per_token(self) -> float:
        # Decay is one multiply; reading by key, writing the correction and reading by query a
        # multiply and an add each.
        return 7.0 * self._state + 2.0 * self._channels * self.conv_size

    @staticmethod
    def read_config(read: ConfigKeys, layer: str, hidden_size: int) -> Table:
        """The table that the keys of a ``config.json`` describe.

        Raises:
            UserError: if a key is missing.
        """
        return {
            "kind": "gated_delta_net",
            "num_key_heads": read.size("linear_num_key_heads"),
            "num_value_heads": read.size("linear_num_value_heads"),
            "key_head_size": read.size("linear_key_head_dim"),
            "value_head_size": read.size("linear_value_head_dim"),
            "conv_size": read.size("linear_conv_kernel_dim"),
        }
