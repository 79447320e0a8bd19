"""What is left when GPUs or nodes are lost, which cluster would do with them lost, and what stands
idle for that.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

from simulator.config.capacity import Spare
from simulator.deployment.plan import make_plan
from simulator.planner.explore import Finding, Sized
from simulator.planner.machines import Machines
from simulator.planner.screen import Option
from simulator.planner.trial import Outcome
from simulator.planner.whatif import AS_ASKED, Change, Trials, cost_of, gpu_hour

LOST = (Spare(gpus=1), Spare(nodes=1), Spare(nodes=2))
"""The losses that are looked at."""
_MOST_UNITS_IN_PAIRS = 128
"""GPUs or nodes of which every combination is tried; of more, the first ones are lost."""


def with_losses(trials: Trials, option: Option, sized: Sized) -> list[dict[str, Any]]:
    """A row for nothing lost and for each of :data:`LOST`, at its worst: the GPUs or nodes whose
    loss hurts most.

    Replicas lie on GPUs in order, those for prompts first. A replica with a lost GPU is gone,
    whichever of its GPUs it was; what stands idle takes the lost ones' places. Goodput counts
    requests that keep :func:`~simulator.planner.whatif.promise`. With more lost nothing is counted
    better than with less, since a balancer could leave replicas idle: the trials' noise is not a
    gain.
    """
    machines = trials.space.machines[option.design.machines]
    rate = trials.explorer(option, AS_ASKED).traffic.rate_per_s
    host_gpus = trials.space.host_gpus(option.design, option.prefill)
    rows = [_row(trials, option, machines, rate, Spare(), [sized], sized.size)]
    for lost in LOST:
        left = sized.size - lost.nodes * host_gpus - lost.gpus
        remaining = [] if left <= 0 else left_of(option, sized, lost, host_gpus)
        row = _row(trials, option, machines, rate, lost, remaining, max(left, 0))
        before = rows[-1]
        for name, worse in (("goodput_per_s", min), ("attainment", min), ("worst_ratio", max)):
            if row[name] is not None and before[name] is not None:
                row[name] = worse(row[name], before[name])
        row["met"] = row["met"] and before["met"]
        rows.append(row)
    return rows


def left_of(option: Option, sized: Sized, lost: Spare, host_gpus: int) -> list[Sized]:
    """Which replicas may be left of a deployment when some GPUs or some nodes are lost: every
    outcome that no other is worse than.

    Args:
        host_gpus: GPUs of a node.
    """
    unit, count_lost = (host_gpus, lost.nodes) if lost.nodes else (1, lost.gpus)
    pools = [(sized.replicas, option.design.num_ranks)]
    if option.prefill is not None:
        pools.insert(0, (sized.prefill_replicas, option.prefill.num_ranks))
    units_of: list[tuple[int, frozenset[int]]] = []
    first = 0
    for pool, (count, ranks) in enumerate(pools):
        for _ in range(count):
            units_of.append(
                (pool, frozenset(range(first // unit, (first + ranks - 1) // unit + 1)))
            )
            first += ranks
    used = -(-first // unit)
    idle = max(0, -(-sized.size // unit) - used)
    if not lost.nodes:
        idle //= min(max(ranks for _, ranks in pools), host_gpus)
    gone = min(max(0, count_lost - idle), used)
    if gone == 0:
        return [sized]
    chosen = (
        combinations(range(used), gone)
        if used <= _MOST_UNITS_IN_PAIRS or gone == 1
        else iter([tuple(range(gone))])
    )
    found: set[tuple[int, ...]] = set()
    for units in chosen:
        dead = [pool for pool, on in units_of if not on.isdisjoint(units)]
        found.add(tuple(count - dead.count(pool) for pool, (count, _) in enumerate(pools)))
    worst = [
        one
        for one in found
        if not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in found
        )
    ]
    return [
        sized._replace(replicas=one[-1], prefill_replicas=one[0] if len(one) > 1 else 0)
        for one in sorted(worst)
    ]


def _row(
    trials: Trials,
    option: Option,
    machines: Machines,
    rate: float,
    lost: Spare,
    remaining: list[Sized],
    gpus: int,
) -> dict[str, Any]:
    serving = [
        one
        for one in remaining
        if one.replicas and (option.prefill is None or one.prefill_replicas)
    ]
    row: dict[str, Any] = {
        "lost": str(lost),
        "nodes_lost": lost.nodes,
        "gpus_lost": lost.gpus,
        "gpus_left": gpus,
        "node_gpus": machines.spec.gpus_per_node,
    }
    if not remaining or len(serving) < len(remaining):
        nothing = {
            "replicas_left": 0,
            "prefill_replicas_left": 0,
            "goodput_per_s": 0.0,
            "attainment": 0.0,
        }
        return (
            row
            | nothing
            | {
                "worst_target": None,
                "worst_ratio": None,
                "met": False,
                "text": "nothing is left that could serve",
            }
        )
    outcomes = [(one, trials.trial(option, one)) for one in serving]
    shares = [
        outcome.kept_share if math.isfinite(outcome.kept_share) else None for _, outcome in outcomes
    ]
    (worst, _), share = max(
        zip(outcomes, shares, strict=True),
        key=lambda item: (-(item[1] if item[1] is not None else 0.0), item[0][1].worst),
    )
    hardest: Outcome = max((outcome for _, outcome in outcomes), key=lambda one: one.worst)
    return row | {
        "replicas_left": worst.replicas,
        "prefill_replicas_left": worst.prefill_replicas,
        "goodput_per_s": None if share is None else share * rate,
        "attainment": share,
        "worst_target": hardest.tightest,
        "worst_ratio": hardest.worst,
        "met": all(one.met for _, one in outcomes),
        "text": "",
    }


def spare_nodes(trials: Trials, option: Option) -> list[dict[str, Any]]:
    """N+k: the cluster that keeps all targets with nothing and with each of :data:`LOST` lost; and
    what that costs more.

    Where replicas are rented on nodes of their own, :func:`whole_nodes` are named beside them.
    """
    machines = trials.space.machines[option.design.machines]
    rows = []
    base: float | None = None
    for spare in (Spare(), *LOST):
        change = Change(spare=spare)
        finding = trials.find(option, change)
        size = finding.sized.size if finding.sized is not None else None
        cost = cost_of(trials.space, finding) if size is not None else None
        base = cost if spare == Spare() else base
        host_gpus = trials.explorer(option, change).space.host_gpus(option.design, option.prefill)
        rows.append(
            {
                "lost": str(spare),
                "nodes_lost": spare.nodes,
                "gpus_lost": spare.gpus,
                "gpus": size,
                "nodes": None if size is None else -(-size // host_gpus),
                "cost_per_hour": cost,
                "extra_cost_per_hour": None if cost is None or base is None else cost - base,
                **whole_nodes(machines, host_gpus, finding.num_gpus, spare),
                "why": finding.why,
            }
        )
    return rows


def whole_nodes(
    machines: Machines, host_gpus: int, num_gpus: int, lost: Spare
) -> dict[str, float | None]:
    """What whole nodes with replicas side by side would take; ``None`` where a node is one already,
    or where that is beyond the limits.

    Args:
        host_gpus: GPUs that are rented on one node.
        num_gpus: GPUs of the replicas that must be left.
    """
    per_node = machines.spec.gpus_per_node
    gpus = None
    if host_gpus < per_node and num_gpus:
        spare = lost.nodes * per_node + lost.gpus * host_gpus
        gpus = machines.in_whole_nodes(num_gpus + spare)
    cost = None if gpus is None else gpus * machines.gpu_hour
    return {"gpus_in_whole_nodes": gpus, "cost_per_hour_in_whole_nodes": cost}


def idle_costs(trials: Trials, first: Finding, copying: Finding | None) -> dict[str, Any]:
    """What stands idle: GPUs that no replica of the first choice uses, besides those held back, and
    memory of copies of experts.

    Args:
        copying: the best deployment with copies, which need not be the first choice.
    """
    space, option = trials.space, first.option
    held_back = space.spare_gpus(option.design, option.prefill)
    unused = 0 if first.sized is None else max(0, first.sized.size - first.num_gpus - held_back)
    return {
        "unused_gpus": unused,
        "unused_cost_per_hour": unused * gpu_hour(space, option.design.machines),
        "held_back": str(space.question.spare) if held_back else "",
        "held_back_gpus": held_back,
        "held_back_cost_per_hour": held_back * gpu_hour(space, option.design.machines),
        "spare_experts": None
        if copying is None or copying.sized is None
        else _spare_experts(trials, copying.option, copying.sized),
    }


def _spare_experts(trials: Trials, option: Option, sized: Sized) -> dict[str, Any] | None:
    """Slots that hold copies; ``None`` where there are none.

    They compute no more than before, since copies share the tokens of one expert: what they take is
    memory, which the cache does not get, and what they save shows in the size without them.
    """
    design, space = option.design, trials.space
    moe = space.models[design.model].moe
    if not design.slots or moe is None or design.slots <= moe.num_experts:
        return None
    plain = design._replace(slots=0)
    seed, folder = space.question.seed, space.folder
    with_copies, without = (
        make_plan(space.spec(one, option.budget), seed, "plan", folder).serving.capacity
        for one in (design, plain)
    )
    bytes_per_gpu = with_copies.weights_bytes - without.weights_bytes
    share = bytes_per_gpu / with_copies.total_bytes
    cost = cost_of(space, trials.find(option._replace(design=plain)))
    return {
        "deployment": space.text(design),
        "slots": design.slots - moe.num_experts,
        "share_of_slots": 1 - moe.num_experts / design.slots,
        "bytes_per_gpu": bytes_per_gpu,
        "share_of_memory": share,
        "cost_per_hour": share
        * sized.replicas
        * design.num_ranks
        * gpu_hour(space, design.machines),
        "cache_tokens_forgone": without.tokens - with_copies.tokens,
        "cost_per_hour_without": cost if math.isfinite(cost) else None,
    }
