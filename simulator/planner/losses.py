"""Deployments with GPUs or nodes lost, clusters that would do with them lost, and GPUs that stand
idle for that.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from simulator.config.capacity import Spare
from simulator.planner.conditions import Change, Trials
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.loss_probability import share_of_time_within
from simulator.planner.screen import Candidate
from simulator.planner.space import Spares, count_spares
from simulator.policies.failures import Machines
from simulator.results.answer import Idle, LossRow, SpareRow
from simulator.results.answer.failures import SpareExperts

LOST: tuple[Spare, ...] = (Spare(gpus=1), Spare(nodes=1), Spare(nodes=2))
"""The losses that are looked at."""
_MOST_UNITS_IN_PAIRS = 128
"""GPUs or nodes of which every combination is tried; of more, the first ones are lost."""


def with_losses(trials: Trials, candidate: Candidate, cluster_size: ClusterSize) -> list[LossRow]:
    """A row for nothing lost and for each of :data:`LOST`, at its worst: the GPUs or nodes whose
    loss hurts most.

    Replicas lie on GPUs in order, those for prompts first. A replica with a lost GPU is gone,
    whichever of its GPUs it was; what stands idle takes the lost ones' places. Goodput counts
    requests that keep :func:`~simulator.planner.conditions.choose_slo`. With more lost
    nothing is counted better than with less, since a balancer could leave replicas idle: the
    trials' noise is not a gain.
    """
    host_gpus = trials.space.host_gpus(*candidate.sides)
    rows = [_row(trials, candidate, Spare(), [cluster_size], cluster_size.size)]
    for lost in LOST:
        left = cluster_size.size - lost.nodes * host_gpus - lost.gpus
        remaining = [] if left <= 0 else list_survivors(candidate, cluster_size, lost, host_gpus)
        row = _row(trials, candidate, lost, remaining, max(left, 0))
        rows.append(_bound_row(row, rows[-1]))
    return rows


def _bound_row(row: LossRow, before: LossRow) -> LossRow:
    """A row that is nowhere better than the one with less lost."""
    bounded = {
        name: worse(mine, theirs)
        for name, worse in (("goodput_per_s", min), ("attainment", min), ("worst_ratio", max))
        if (mine := getattr(row, name)) is not None
        and (theirs := getattr(before, name)) is not None
    }
    return row.model_copy(update={**bounded, "met": row.met and before.met})


def list_survivors(
    candidate: Candidate, cluster_size: ClusterSize, lost: Spare, host_gpus: int
) -> list[ClusterSize]:
    """Replicas that may be left of a deployment when some GPUs or some nodes are lost: every
    outcome that no other is worse than.

    Args:
        host_gpus: GPUs of a node.
    """
    unit, count_lost = (host_gpus, lost.nodes) if lost.nodes else (1, lost.gpus)
    pools = [Machines(cluster_size.replicas, candidate.shape.num_ranks, unit)]
    if candidate.prefill is not None:
        pools.insert(0, Machines(cluster_size.prefill_replicas, candidate.prefill.num_ranks, unit))
        pools[1] = pools[1]._replace(first_gpu=pools[0].num_gpus)
    used = pools[-1].num_nodes
    idle = max(0, -(-cluster_size.size // unit) - used)
    if not lost.nodes:
        idle //= min(max(pool.gpus_per_replica for pool in pools), host_gpus)
    gone = min(max(0, count_lost - idle), used)
    if gone == 0:
        return [cluster_size]
    chosen = (
        combinations(range(used), gone)
        if used <= _MOST_UNITS_IN_PAIRS or gone == 1
        else iter([tuple(range(gone))])
    )
    hit = [[set(one.find_replicas(one.list_gpus(n))) for n in range(used)] for one in pools]
    found = {
        tuple(
            pool.num_replicas - len(set().union(*(of_unit[n] for n in units)))
            for pool, of_unit in zip(pools, hit, strict=True)
        )
        for units in chosen
    }
    worst = [
        one
        for one in found
        if not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in found
        )
    ]
    return [
        cluster_size._replace(replicas=one[-1], prefill_replicas=one[0] if len(one) > 1 else 0)
        for one in sorted(worst)
    ]


def _row(
    trials: Trials, candidate: Candidate, lost: Spare, remaining: list[ClusterSize], gpus: int
) -> LossRow:
    row = LossRow(
        lost=str(lost),
        nodes_lost=lost.nodes,
        gpus_lost=lost.gpus,
        gpus_left=gpus,
        node_gpus=trials.space.machines_at(candidate.shape).spec.gpus_per_node,
        goodput_per_s=0.0,
        attainment=0.0,
        text="nothing is left that could serve",
    )
    serves = [
        one.replicas and (candidate.prefill is None or one.prefill_replicas) for one in remaining
    ]
    if not remaining or not all(serves):
        return row
    outcomes = [(one, trials.trial(candidate, one)) for one in remaining]
    worst, found = max(outcomes, key=lambda one: (-np.nan_to_num(one[1].kept_share), one[1].worst))
    share = found.kept_share if math.isfinite(found.kept_share) else None
    rate = trials.open_explorer(candidate).traffic.rate_per_s
    hardest = max((outcome for _, outcome in outcomes), key=lambda one: one.worst)
    return row.model_copy(
        update={
            "replicas_left": worst.replicas,
            "prefill_replicas_left": worst.prefill_replicas,
            "goodput_per_s": None if share is None else share * rate,
            "attainment": share,
            "worst_target": hardest.binding_target,
            "worst_ratio": hardest.worst,
            "met": all(one.met for _, one in outcomes),
            "text": "",
        }
    )


def spare_nodes(trials: Trials, candidate: Candidate) -> list[SpareRow]:
    """N+k: the cluster that keeps all targets with nothing and with each of :data:`LOST` lost, what
    that costs more, and for what share of the time no more is lost.

    Where replicas are rented on nodes of their own, clusters of whole nodes are named beside them.
    """
    machines = trials.space.machines_at(candidate.shape)
    rows: list[SpareRow] = []
    for spare in (Spare(), *LOST):
        change = Change(spare=spare)
        evaluation = trials.find(candidate, change)
        host_gpus = trials.open_explorer(candidate, change).space.host_gpus(*candidate.sides)
        row = SpareRow(
            lost=str(spare),
            nodes_lost=spare.nodes,
            gpus_lost=spare.gpus,
            **machines.find_whole_nodes(host_gpus, evaluation.num_gpus, spare),
            why=evaluation.why,
        )
        if (size := evaluation.size) is not None:
            cost, failures = evaluation.cost_per_hour, trials.space.question.failures
            base = rows[0].cost_per_hour if rows else cost
            low, high = share_of_time_within(size, host_gpus, spare, failures)
            found = {
                "gpus": size,
                "nodes": -(-size // host_gpus),
                "cost_per_hour": cost,
                "extra_cost_per_hour": None if base is None else cost - base,
                "enough_low": low,
                "enough_high": high,
            }
            row = row.model_copy(update=found)
        rows.append(row)
    return rows


def idle_costs(trials: Trials, first: Evaluation, copying: Evaluation | None) -> Idle:
    """Idle parts of a cluster: GPUs that no replica of the first choice uses, besides those held
    back, and memory of copies of experts.

    Args:
        copying: the best deployment with copies, which need not be the first choice.
    """
    space, candidate = trials.space, first.candidate
    held_back = space.spare_gpus(*candidate.sides)
    size = first.cluster_size
    spares = Spares() if size is None else count_spares(space, candidate.sides, *size[1:])
    held_back += candidate.count_gpus(*spares)
    unused = 0 if first.size is None else max(0, first.size - first.num_gpus - held_back)
    hourly = space.machines_at(candidate.shape).gpu_hour
    return Idle(
        unused_gpus=unused,
        unused_cost_per_hour=unused * hourly,
        held_back=_name_held_back(space.question.spare, spares),
        held_back_gpus=held_back,
        held_back_cost_per_hour=held_back * hourly,
        spare_experts=None
        if copying is None or copying.cluster_size is None
        else _spare_experts(trials, copying.candidate, copying.cluster_size),
    )


def _name_held_back(spare: Spare, spares: Spares) -> str:
    """Machines that may be lost and spare replicas, in words; empty without any."""
    count = sum(spares)
    parts = [str(spare)] if spare != Spare() else []
    parts += [f"{count:,} spare replica{'' if count == 1 else 's'}"] if count else []
    return " and ".join(parts)


def _spare_experts(
    trials: Trials, candidate: Candidate, cluster_size: ClusterSize
) -> SpareExperts | None:
    """Slots that hold copies; ``None`` where there are none.

    They compute no more than before, since copies share the tokens of one expert: what they take is
    memory, which the cache does not get, and what they save shows in the size without them.
    """
    shape, space = candidate.shape, trials.space
    moe = space.models[shape.model].moe
    if not shape.slots or moe is None or shape.slots <= moe.num_experts:
        return None
    plain = shape._replace(slots=0)
    with_copies, without = (
        space.plan(one, candidate.budget).serving.capacity for one in (shape, plain)
    )
    bytes_per_gpu = with_copies.weights_bytes - without.weights_bytes
    share = bytes_per_gpu / with_copies.total_bytes
    cost = trials.find(candidate._replace(shape=plain)).cost_per_hour
    return SpareExperts(
        deployment=space.text(shape),
        slots=shape.slots - moe.num_experts,
        share_of_slots=1 - moe.num_experts / shape.slots,
        bytes_per_gpu=bytes_per_gpu,
        share_of_memory=share,
        cost_per_hour=share
        * cluster_size.replicas
        * shape.num_ranks
        * space.machines_at(shape).gpu_hour,
        cache_tokens_forgone=without.tokens - with_copies.tokens,
        cost_per_hour_without=cost if math.isfinite(cost) else None,
    )
