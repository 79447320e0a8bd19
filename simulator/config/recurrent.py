"""Recurrent mixers, which carry a fixed state instead of a cache: linear attention, state space."""

from __future__ import annotations

from typing import Literal

from simulator.base.quantities import Width
from simulator.config.linear import Linear
from simulator.config.mixer_kind import MixerKind


class GatedDeltaNet(MixerKind):
    """Gated linear attention with the delta rule (Qwen3-Next, Qwen3.5; arXiv:2412.06464): a fixed
    state instead of a KV cache.
    """

    kind: Literal["gated_delta_net"]
    num_key_heads: Width
    num_value_heads: Width
    key_head_size: Width
    value_head_size: Width
    conv_size: Width

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
        key, value = (
            self.num_key_heads * self.key_head_size,
            self.num_value_heads * self.value_head_size,
        )
        return (
            Linear("qkvz", hidden_size, 2 * key + 2 * value, "column"),
            Linear("decay and step", hidden_size, 2 * self.num_value_heads, "column"),
            Linear("attention output", value, hidden_size, "row"),
        )

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


class Mamba2(MixerKind):
    """State-space layer (Mamba-2, arXiv:2405.21060): a fixed state instead of a KV cache."""

    kind: Literal["mamba2"]
    num_heads: Width
    head_size: Width
    state_size: Width
    num_groups: Width
    conv_size: Width
    has_conv_bias: bool = True

    @property
    def _inner(self) -> int:
        return self.num_heads * self.head_size

    @property
    def _channels(self) -> int:
        return self._inner + 2 * self.num_groups * self.state_size

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        return (
            Linear(
                "state in", hidden_size, self._inner + self._channels + self.num_heads, "column"
            ),
            Linear("state out", self._inner, hidden_size, "row"),
        )

    def num_small_parameters(self, hidden_size: int) -> int:
        conv = self._channels * (self.conv_size + (1 if self.has_conv_bias else 0))
        return (
            self.norms + conv + 3 * self.num_heads + self._inner
        )  # dt bias, A and D a head; the gated norm

    def state_elements(self) -> int:
        return self._inner * self.state_size + self._channels * (self.conv_size - 1)

    def recurrent_flops_per_token(self) -> float:
        # Decay is one multiply; writing the input and reading by C a multiply and an add each.
        return 5.0 * self._inner * self.state_size + 2.0 * self._channels * self.conv_size
