"""Arrangement of one replica's ranks: tensor-, data- (attention) and expert-parallel groups in each
pipeline stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.base.errors import UserError
from simulator.config.deployment import ParallelSpec
from simulator.config.linear import Linear
from simulator.config.model import ModelSpec


@dataclass(frozen=True)
class Layout:
    """Parallel groups of one replica.

    Rank ``r`` of a stage is tensor-parallel rank ``r % tp`` of data-parallel group ``r // tp``, and
    holds the experts of EP rank ``r // moe_tp``. The ranks of a stage are neighbours: GPU ``s R +
    r`` of a replica is rank ``r`` of stage ``s``.
    """

    tp: int
    """Tensor-parallel ranks of a data-parallel group."""
    attention_dp: int
    """Data-parallel groups of attention in a stage."""
    ep: int
    """Expert-parallel ranks of a stage."""
    pp: int = 1
    """Pipeline stages."""

    @property
    def num_ranks(self) -> int:
        """``R``, ranks of one stage: those that share a layer."""
        return self.tp * self.attention_dp

    @property
    def num_gpus(self) -> int:
        """GPUs of all stages."""
        return self.num_ranks * self.pp

    @property
    def num_batches(self) -> int:
        """Batches of requests that a step holds: one for each data-parallel group and stage."""
        return self.attention_dp * self.pp

    @property
    def moe_tp(self) -> int:
        """Ranks that each routed expert is split over."""
        return self.num_ranks // self.ep

    @property
    def travels(self) -> bool:
        """Whether tokens travel to their experts; with one data-parallel group every rank already
        has every token.
        """
        return self.attention_dp > 1

    def text(self) -> str:
        """Describe the layout for people: ``attention DP 8 x TP 1, EP 8``; ``TP 8, PP 2``."""
        more = (f", EP {self.ep}" if self.ep > 1 else "") + (
            f", PP {self.pp}" if self.pp > 1 else ""
        )
        return (
            f"attention DP {self.attention_dp} x TP {self.tp}{more}"
            if self.attention_dp > 1
            else f"TP {self.tp}{more}"
        )


def make_layout(parallel: ParallelSpec, model: ModelSpec, where: str) -> Layout:
    """Build the layout of a model, once every number is found to divide.

    Raises:
        UserError: naming the numbers that do not divide.
    """
    ep = parallel.ep or 1
    if model.moe is None and ep > 1:
        raise UserError(
            f"{where} [parallel]: ep = {ep}, but {model.name} is dense and has no experts to "
            "spread; leave ep out"
        )
    if parallel.num_ranks % ep:
        raise UserError(
            f"{where} [parallel]: ep ({ep}) must divide tp x attention_dp ({parallel.num_ranks})"
        )
    if model.moe is not None and ep > model.moe.num_experts:
        raise UserError(
            f"{where} [parallel]: ep ({ep}) must be at most the {model.moe.num_experts} "
            f"experts of {model.name}"
        )
    uneven = uneven_heads(model, parallel.tp)
    if uneven is not None:
        name, heads = uneven
        raise UserError(
            f"{where} [parallel]: tp ({parallel.tp}) must divide the {heads} heads "
            f"of {model.name}'s mixer '{name}'"
        )
    if parallel.pp > model.num_layers:
        raise UserError(
            f"{where} [parallel]: pp ({parallel.pp}) must be at most the {model.num_layers} "
            f"layers of {model.name}"
        )
    return Layout(parallel.tp, parallel.attention_dp, ep, parallel.pp)


def stage_layers(num_layers: int, pp: int) -> list[range]:
    """Layers of each stage, split as evenly as possible; the remainder goes to stages before the
    last, which has the output head (vLLM).

    >>> [len(layers) for layers in stage_layers(61, 4)]
    [15, 15, 16, 15]
    """
    each, over = divmod(num_layers, pp)
    counts = [each + (pp - 1 - over <= stage < pp - 1) for stage in range(pp)]
    return [range(sum(counts[:stage]), sum(counts[: stage + 1])) for stage in range(pp)]


def uneven_heads(model: ModelSpec, tp: int) -> tuple[str, int] | None:
    """Find the first mixer whose heads ``tp`` does not divide: its name and number of heads."""
    for name, mixer in model.mixers.items():
        if mixer.split_heads % tp:
            return name, mixer.split_heads
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
