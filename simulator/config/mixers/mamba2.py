"""Mamba-2's state-space layers: a fixed state instead of a cache."""

from __future__ import annotations

from typing import Literal, Self

from simulator.base.quantities import Groups, Heads, TokenExtent, Width
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.linear import Linear
from simulator.config.mixers import Mixer, count_heads


class Mamba2(Mixer):
    """State-space layer (Mamba-2, arXiv:2405.21060): a fixed state instead of a KV cache."""

    kind: Literal["mamba2"]
    """State-space layer of Mamba-2."""
    num_heads: Heads
    """Number of heads."""
    head_size: Width
    """Numbers in a head."""
    state_size: Width
    """Numbers in the state of each of a head's channels."""
    num_groups: Groups
    """Number of groups of heads that share the input and output matrices of the state (B and C)."""
    conv_size: TokenExtent
    """Tokens that the short convolution sees."""
    has_conv_bias: bool = True
    """Whether the convolution has a bias."""

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

    @property
    def split_heads(self) -> int:
        return self.num_heads

    def scale_heads(self, factor: float) -> Self:
        """Heads grow, in as many groups."""
        heads = count_heads(self.num_heads, factor, self.num_groups)
        return self.model_copy(update={"num_heads": heads})

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

    @staticmethod
    def read_config(read: ConfigKeys, layer: str, hidden_size: int) -> Table:
        """The table that the keys of a ``config.json`` describe.

        Raises:
            UserError: if a key is missing or is not understood.
        """
        if read.flag("mamba_proj_bias") or read.flag("use_bias"):
            raise read.error(
                "mamba_proj_bias and use_bias must be false: "
                "projections with a bias are not understood"
            )
        return {
            "kind": "mamba2",
            "num_heads": read.size("mamba_num_heads"),
            "head_size": read.size("mamba_head_dim"),
            "state_size": read.size("ssm_state_size"),
            "num_groups": read.size("n_groups"),
            "conv_size": read.size("conv_kernel"),
            "has_conv_bias": read.flag("use_conv_bias"),
        }
