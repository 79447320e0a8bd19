"""Mixtures of experts: blocks of which each token uses a part."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from simulator.base.quantities import ExpertCount, Experts, Groups, TopK, Width, WidthOrNone
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.ffns import FFN, make_linears, num_biases, read_gate
from simulator.config.linear import Linear

COUNT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts")
"""Keys of a ``config.json`` that say how many routed experts a layer has."""


class MoE(FFN):
    """Routed experts, of which each token uses ``top_k``, plus a shared expert that every token
    uses.
    """

    kind: Literal["moe"]
    """Mixture of experts."""
    num_experts: Experts
    """Number of routed experts in the layer (``E``), before replication."""
    top_k: TopK
    """Number of routed experts that each token uses (``K``)."""
    intermediate_size: Width
    """Numbers of one token's vector inside a routed expert (``F``)."""
    is_gated: bool = True
    """Whether experts are gated (three matrices) or not (two)."""
    has_expert_bias: bool = False
    """Whether the matrices of experts have biases."""
    shared_intermediate_size: WidthOrNone = 0
    """Numbers of one token's vector inside all shared experts together; 0 = none."""
    num_shared_experts: ExpertCount = 0
    """Number of shared experts, which every token uses."""
    has_shared_gate: bool = False
    """Whether a learned scalar gates the shared expert (Qwen)."""
    scoring: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    """Function that turns the router's output into scores."""
    has_router_bias: bool = False
    """Whether there is a bias for each expert: of the router's matrix, or added to the scores for
    balance (DeepSeek-V3)."""
    num_groups: Groups = 1
    """Number of expert groups for group-limited routing (DeepSeek-V3: 8)."""
    num_limited_groups: Groups = 1
    """Number of groups that a token may choose its experts from."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
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

    def shared_linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices of all shared experts together."""
        if not self.num_shared_experts:
            return ()
        return make_linears(
            hidden_size, self.shared_intermediate_size, self.is_gated, "shared expert"
        )

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        gate = (Linear("shared gate", hidden_size, 1, "whole"),) if self.has_shared_gate else ()
        return (
            Linear("router", hidden_size, self.num_experts, "whole"),
            *self.shared_linears(hidden_size),
            *gate,
        )

    @property
    def inner_width(self) -> int:
        return self.shared_intermediate_size

    @property
    def experts(self) -> MoE:
        return self

    def num_small_parameters(self, hidden_size: int) -> int:
        return self.num_experts if self.has_router_bias else 0

    @property
    def num_candidates(self) -> int:
        """Number of experts that a token may choose from: those of the groups that it is limited
        to.
        """
        return self.num_experts // self.num_groups * self.num_limited_groups

    def expert_linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices of one routed expert."""
        return make_linears(hidden_size, self.intermediate_size, self.is_gated, "expert")

    def num_expert_parameters(self, hidden_size: int) -> int:
        """Parameters of one routed expert."""
        bias = (
            num_biases(hidden_size, self.intermediate_size, self.is_gated)
            if self.has_expert_bias
            else 0
        )
        return sum(linear.num_parameters for linear in self.expert_linears(hidden_size)) + bias

    @staticmethod
    def read_config(read: ConfigKeys, layer: str) -> Table:
        """The table that the keys of a ``config.json`` describe.

        Args:
            layer: ``"moe"``, or ``"moe-hashed"`` for experts that are looked up by token id.

        Raises:
            UserError: if a key is missing or is not understood.
        """
        convention = read.convention
        width = (
            read.size("moe_intermediate_size")
            if read.find("moe_intermediate_size")
            else read.size("intermediate_size")
        )
        num_shared, shared_width = _shared_experts(read, width)
        return {
            "kind": "moe",
            "num_experts": read.size(*COUNT_KEYS),
            "top_k": read.size("num_experts_per_tok", "experts_per_token"),
            "intermediate_size": width,
            "is_gated": read_gate(read),
            "has_expert_bias": convention.has_expert_bias,
            "num_shared_experts": num_shared,
            "shared_intermediate_size": shared_width,
            "has_shared_gate": convention.has_shared_gate and num_shared > 0,
            "scoring": read.find("scoring_func") or convention.scoring,
            # Layers that look their experts up by token id (DeepSeek-V4's first ones) need no bias
            # for balance.
            "has_router_bias": layer != "moe-hashed"
            and (
                convention.has_router_bias
                or read.flag("use_routing_bias")
                or read.find("topk_method") == "noaux_tc"
            ),
            "num_groups": max(read.size_or(1, "n_group"), 1),
            "num_limited_groups": max(read.size_or(1, "topk_group"), 1),
        }


def _shared_experts(read: ConfigKeys, expert_width: int) -> tuple[int, int]:
    """Number of shared experts, and the width of all of them together."""
    num_shared = read.size_or(
        read.convention.num_shared_experts, "n_shared_experts", "num_shared_experts"
    )
    width = read.size_or(
        0,
        "moe_shared_expert_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
    )
    if width:
        return max(num_shared, 1), width
    return num_shared, num_shared * expert_width
