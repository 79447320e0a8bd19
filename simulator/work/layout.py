"""How one replica's ranks are arranged: tensor-parallel groups, attention data-parallel groups, expert-parallel groups."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import UserError
from simulator.spec.deployment import ParallelSpec
from simulator.spec.linear import Linear
from simulator.spec.model import ModelSpec


@dataclass(frozen=True)
class Layout:
    """Rank ``r`` is tensor-parallel rank ``r % tp`` of data-parallel group ``r // tp``, and holds the experts of EP rank ``r // moe_tp``."""

    tp: int
    attention_dp: int
    ep: int

    @property
    def num_ranks(self) -> int:
        """``R``."""
        return self.tp * self.attention_dp

    @property
    def moe_tp(self) -> int:
        """Ranks that one routed expert is split over."""
        return self.num_ranks // self.ep

    @property
    def travels(self) -> bool:
        """Whether tokens travel to their experts; with one data-parallel group every rank already has every token."""
        return self.attention_dp > 1

    def text(self) -> str:
        """For people: ``attention DP 8 x TP 1, EP 8``."""
        experts = f", EP {self.ep}" if self.ep > 1 else ""
        return f"attention DP {self.attention_dp} x TP {self.tp}{experts}" if self.attention_dp > 1 else f"TP {self.tp}{experts}"


def make_layout(parallel: ParallelSpec, model: ModelSpec, where: str) -> Layout:
    """Check that the model can be split as asked.

    Raises:
        UserError: naming the numbers that do not divide.
    """
    ep = parallel.ep or 1
    if model.moe is None and ep > 1:
        raise UserError(f"{where} [parallel]: ep = {ep}, but {model.name} is dense and has no experts to spread; leave ep out")
    if parallel.num_ranks % ep:
        raise UserError(f"{where} [parallel]: ep ({ep}) must divide tp x attention_dp ({parallel.num_ranks})")
    if model.moe is not None and ep > model.moe.num_experts:
        raise UserError(f"{where} [parallel]: ep ({ep}) must be at most the {model.moe.num_experts} experts of {model.name}")
    uneven = uneven_heads(model, parallel.tp)
    if uneven is not None:
        name, heads = uneven
        raise UserError(f"{where} [parallel]: tp ({parallel.tp}) must divide the {heads} heads of {model.name}'s mixer '{name}'")
    return Layout(parallel.tp, parallel.attention_dp, ep)


def uneven_heads(model: ModelSpec, tp: int) -> tuple[str, int] | None:
    """The first mixer whose heads ``tp`` does not divide, and how many it has."""
    for name, mixer in model.mixers.items():
        heads: int = mixer.num_heads if hasattr(mixer, "num_heads") else mixer.num_value_heads
        if heads % tp:
            return name, heads
    return None


def shard(linear: Linear, tp: int) -> tuple[int, int, int]:
    """``(in_features, out_features, copies)`` of one rank's part of a matrix."""
    if linear.split == "whole":
        return linear.in_features, linear.out_features, linear.copies
    if linear.copies > 1:
        return linear.in_features, linear.out_features, -(-linear.copies // tp)
    if linear.split == "column":
        return linear.in_features, -(-linear.out_features // tp), 1
    return -(-linear.in_features // tp), linear.out_features, 1
