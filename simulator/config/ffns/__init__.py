"""Feed-forward blocks: the half of a layer that treats every token on its own, one kind a file.

Whoever needs to know something of a block asks it; nobody looks at its class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from simulator.base.frozen import Frozen
from simulator.config._config_json import ConfigKeys
from simulator.config.linear import Linear

if TYPE_CHECKING:
    from simulator.config.ffns.moe import MoE


class FFN(Frozen, ABC):
    """Base of every kind of feed-forward block; the name of a kind's file is its ``kind``."""

    kind: str
    """Kind of feed-forward block."""

    @abstractmethod
    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices that every token passes through, a router among them."""

    @property
    @abstractmethod
    def inner_width(self) -> int:
        """Features between the matrices that every token passes through, split over tensor-parallel
        ranks: those of a dense block or of a shared expert; 0 where only routed experts have any.
        """

    @property
    def experts(self) -> MoE | None:
        """Routed experts, of which each token uses some; ``None`` for a block without."""
        return None

    @property
    def is_prunable(self) -> bool:
        """Whether ``[pruning]`` takes weights out of its matrices."""
        return False

    @property
    def has_gate(self) -> bool:
        """Whether its networks have a gate, as experts made of them would."""
        return True

    @property
    def has_biases(self) -> bool:
        """Whether its matrices have biases, as those of experts made of them would."""
        return False

    def num_small_parameters(self, hidden_size: int) -> int:
        """Parameters outside matrices that every token uses: biases."""
        return 0

    def num_parameters(self, hidden_size: int) -> int:
        """Number of parameters of the block, every routed expert included."""
        every = 0 if self.experts is None else self.experts.num_experts
        return self._num_with(every, hidden_size)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Number of parameters that one token uses: ``top_k`` of the routed experts, and everything
        else.
        """
        chosen = 0 if self.experts is None else self.experts.top_k
        return self._num_with(chosen, hidden_size)

    def _num_with(self, num_experts: int, hidden_size: int) -> int:
        always = sum(linear.num_parameters for linear in self.linears(hidden_size))
        expert = 0 if self.experts is None else self.experts.num_expert_parameters(hidden_size)
        return always + self.num_small_parameters(hidden_size) + num_experts * expert


def make_linears(
    hidden_size: int, intermediate_size: int, is_gated: bool, name: str
) -> tuple[Linear, ...]:
    """Make the matrices of the network; a gate is stacked on the projection up."""
    up = 2 * intermediate_size if is_gated else intermediate_size
    return (
        Linear(f"{name} up", hidden_size, up, "column"),
        Linear(f"{name} down", intermediate_size, hidden_size, "row"),
    )


def num_biases(hidden_size: int, intermediate_size: int, is_gated: bool) -> int:
    """Numbers in its biases, one a feature that a matrix puts out."""
    return (2 if is_gated else 1) * intermediate_size + hidden_size


def read_gate(read: ConfigKeys) -> bool:
    """Whether a ``config.json`` describes networks with a gate.

    Raises:
        UserError: if its activation is missing or not known.
    """
    activation = next(
        filter(None, map(read.find, ("mlp_hidden_act", "hidden_activation", "hidden_act"))), None
    )
    if activation is None:
        raise read.error("missing key 'hidden_act'")
    known = {"silu": True, "swiglu": True, "relu2": False}.get(
        str(activation), read.convention.is_gated
    )
    if known is None:
        raise read.error(
            f"hidden_act is '{activation}': whether the feed-forward block has "
            "a gate cannot be told"
        )
    return known
