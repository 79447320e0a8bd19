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
from simulator.deployment.training.memory import count_optimized, count_stage, find_element_bytes
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
    """Price the update of a stage's weights. What ZeRO 2 and 3 do for each micro-batch is priced by
    :func:`price_micro_batches`.
    """
    held, spec = count_stage(plan, stage), plan.spec
    if isinstance(plan.placement.calibration, HostRates):
        return _price_on_host(plan, held, plan.placement.calibration)
    element = BYTES_PER_ELEMENT[spec.optimizer.gradient_dtype]
    sums = _collect_stage(plan, "reduce_scatter", held, element)
    optimizer_s = _price_optimizer(plan, stage, element)
    if spec.zero == 0:
        # An all-reduce: sums are handed out before the optimizer needs them.
        handed_s = _collect_stage(plan, "all_gather", held, element)
        return StageUpdate(sums + handed_s, 0.0, optimizer_s)
    gather_s = (
        0.0
        if spec.zero == 3
        else _collect_stage(plan, "all_gather", held, find_element_bytes(plan))
    )
    return StageUpdate(0.0 if spec.zero >= 2 else sums, gather_s, optimizer_s)


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


class MicroBatchUpdate(NamedTuple):
    """Seconds of a stage that sharing weights or gradients adds to every micro-batch, beneath its
    passes as far as these last.
    """

    gather_s: float
    """Weights that are gathered before each pass (ZeRO 3)."""
    reduce_s: float
    """Gradients that are added up after each backward pass (ZeRO 2 and 3)."""


def price_micro_batches(plan: TrainingPlan, stage: int) -> MicroBatchUpdate:
    """Price what ZeRO 2 and 3 do for each micro-batch: a rank that keeps only its part of the
    gradients must add them up before those of the next micro-batch.
    """
    held, element = count_stage(plan, stage), BYTES_PER_ELEMENT[plan.spec.optimizer.gradient_dtype]
    return MicroBatchUpdate(
        _collect_stage(plan, "all_gather", held, find_element_bytes(plan))
        if plan.spec.zero == 3
        else 0.0,
        _collect_stage(plan, "reduce_scatter", held, element) if plan.spec.zero >= 2 else 0.0,
    )


def _collect_stage(
    plan: TrainingPlan, name: str, held: ParameterCount, element_bytes: float
) -> float:
    """Seconds of a collective of all parameters of a stage, dense and routed experts'."""
    dense, expert = _find_groups(plan)
    return _collect(plan, name, held.dense * element_bytes, dense) + _collect(
        plan, name, held.expert * element_bytes, expert
    )


def _price_optimizer(plan: TrainingPlan, stage: int, gradient_bytes: float) -> float:
    """Seconds to read and write moments and master weights, to read gradients and to write
    weights.
    """
    optimizer = plan.spec.optimizer
    moved = (
        2.0 * (optimizer.state_bytes + optimizer.master_bytes)
        + gradient_bytes
        + find_element_bytes(plan)
    )
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
