"""Seconds behind and around the passes of a step: sums of gradients, updated weights, and the
optimizer.

Collectives are priced as rings of the calibrated library (reduce-scatter, all-gather), with one
ring for each GPU that a group has in a node.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.config.calibration import Calibration
from simulator.config.calibration.collective import CollectiveFit
from simulator.config.calibration.exchange import doublings
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.host import ExchangeTable, HostRates
from simulator.deployment.training.memory import WEIGHT_BYTES, count_optimized, count_stage
from simulator.deployment.training.plan import TrainingPlan
from simulator.work.trained import ParameterCount

_OPTIMIZER_SHARE = 0.8
"""Share of the memory's peak rate at which the optimizer reads and writes its state. Assumed: as
STREAM-like kernels do."""


class StageUpdate(NamedTuple):
    """Seconds of one stage that come once in a step."""

    reduce_s: float
    """Sums of gradients over data-parallel ranks, on wires that carry nothing else."""
    gather_s: float
    """Updated weights to the ranks that do not hold their optimizer state."""
    optimizer_s: float


def price_update(plan: TrainingPlan, stage: int) -> StageUpdate:
    """Price the update of a stage's weights. With ZeRO 3 gradients are reduced and weights gathered
    for each micro-batch: :func:`price_gathers`.
    """
    held, spec = count_stage(plan, stage), plan.spec
    if isinstance(plan.placement.calibration, HostRates):
        return _price_on_host(plan, held, plan.placement.calibration)
    element = BYTES_PER_ELEMENT[spec.optimizer.gradient_dtype]
    dense, expert = _find_groups(plan)
    reduce_s = _collect(plan, "reduce_scatter", held.dense * element, dense)
    reduce_s += _collect(plan, "reduce_scatter", held.expert * element, expert)
    gather_s = 0.0
    if spec.zero != 3:
        # Without ZeRO the summed gradients are handed out, else the updated weights.
        size = element if spec.zero == 0 else WEIGHT_BYTES
        gather_s = _collect(plan, "all_gather", held.dense * size, dense)
        gather_s += _collect(plan, "all_gather", held.expert * size, expert)
    return StageUpdate(reduce_s, gather_s, _price_optimizer(plan, stage, element))


def _price_on_host(plan: TrainingPlan, held: ParameterCount, rates: HostRates) -> StageUpdate:
    """Price the update on a machine's processes by its measured all-reduce and optimizer; copies of
    experts are summed by an exchange of their gradients.
    """
    element = BYTES_PER_ELEMENT[plan.spec.optimizer.gradient_dtype]
    number = np.array(held.dense + held.expert)
    optimizer_s = float(rates.training.optimizer.total(parameters=number))
    reduce_s = 0.0
    if plan.dense_group > 1:
        reduce_s += _time_exchange(rates.collectives.all_reduce, held.dense * element)
    if held.expert and plan.expert_group > 1:
        sent = held.expert * element * (plan.expert_group - 1)
        reduce_s += _time_exchange(rates.collectives.dispatch, sent)
    return StageUpdate(reduce_s, 0.0, optimizer_s)


def _time_exchange(table: ExchangeTable, num_bytes: float) -> float:
    """Seconds of an exchange of so many bytes of each rank."""
    return table.stagger_s + table.latency_s + float(table.seconds_for(np.array(num_bytes)))


def price_gathers(plan: TrainingPlan, stage: int) -> float:
    """Price the gathering of a stage's weights that ZeRO 3 does before each pass of each
    micro-batch; 0 for others.
    """
    if plan.spec.zero != 3:
        return 0.0
    held = count_stage(plan, stage)
    dense, expert = _find_groups(plan)
    return _collect(plan, "all_gather", held.dense * WEIGHT_BYTES, dense) + _collect(
        plan, "all_gather", held.expert * WEIGHT_BYTES, expert
    )


def _price_optimizer(plan: TrainingPlan, stage: int, gradient_bytes: float) -> float:
    """Seconds to read and write moments and master weights, to read gradients and to write
    weights.
    """
    optimizer = plan.spec.optimizer
    moved = 2.0 * (optimizer.state_bytes + optimizer.master_bytes) + gradient_bytes + WEIGHT_BYTES
    rate = plan.placement.accelerator.memory_bytes_per_s * _OPTIMIZER_SHARE
    return count_optimized(plan, stage) * moved / rate


class _Group(NamedTuple):
    """Ranks that a collective goes over."""

    size: int
    apart: int
    """Ranks from one member to the next."""


def _find_groups(plan: TrainingPlan) -> tuple[_Group, _Group]:
    layout = plan.placement.layout
    return _Group(plan.dense_group, layout.tp), _Group(plan.expert_group, layout.num_ranks)


def _collect(plan: TrainingPlan, name: str, num_bytes: float, group: _Group) -> float:
    """Seconds of one collective of ``num_bytes`` over a group; all groups of a node go on at once,
    each over its own ports and cards.
    """
    calibration, cluster = plan.placement.calibration, plan.cluster
    if group.size == 1 or num_bytes == 0.0 or not isinstance(calibration, Calibration):
        return 0.0
    fit: CollectiveFit = calibration.collective[name]
    here = min(max(cluster.gpus_per_node // group.apart, 1), group.size)
    nodes = -(-group.size // here)
    inside_s = 0.0
    start_s = 0.0
    if here > 1:
        start, carry = fit.parts_s(num_bytes, float(here), 1.0, cluster.scale_up.bytes_per_s)
        start_s, inside_s = float(start), float(carry)
    if nodes == 1 or cluster.scale_out is None:
        return start_s + inside_s
    start_s += fit.scale_out_latency_s + fit.latency_per_doubling_s * float(doublings(nodes))
    rate = here * cluster.scale_out.bytes_per_s * (fit.scale_out_fraction or 1.0)
    between_s = num_bytes * (group.size - 1) / group.size / rate
    return float(np.maximum(inside_s, between_s)) + start_s
