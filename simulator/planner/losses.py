"""What is left when nodes are lost, how many nodes would do with so many lost, and what stands idle
for that.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

from simulator.deployment.plan import make_plan
from simulator.planner.explore import Finding, Sized
from simulator.planner.machines import Machines
from simulator.planner.screen import Option
from simulator.planner.trial import Outcome
from simulator.planner.whatif import AS_ASKED, Change, Trials, cost_of, gpu_hour

LOST = (1, 2)
"""Numbers of nodes."""
_MOST_NODES_IN_PAIRS = 128


def with_losses(trials: Trials, option: Option, sized: Sized) -> list[dict[str, Any]]:
    """A row for none, one and two nodes lost, each at its worst: the nodes whose loss hurts most.

    Replicas lie on GPUs in order, those for prompts first. A replica with a GPU on a lost node is
    gone, whichever of its nodes it was; nodes that stand idle take lost ones' places. Goodput
    counts requests that keep :func:`~simulator.planner.whatif.promise`. With fewer replicas nothing
    is counted better than with more, of which a balancer could leave some idle: the trials' noise
    is not a gain.
    """
    machines = trials.space.machines[option.design.machines]
    rate = trials.explorer(option, AS_ASKED).traffic.rate_per_s
    rows = [_row(trials, option, machines, rate, 0, [sized], sized.size)]
    for lost in LOST:
        left = sized.size - lost * machines.spec.gpus_per_node
        remaining = [] if left <= 0 else left_of(option, sized, machines, lost)
        row = _row(trials, option, machines, rate, lost, remaining, max(left, 0))
        before = rows[-1]
        for name, worse in (("goodput_per_s", min), ("attainment", min), ("worst_ratio", max)):
            if row[name] is not None and before[name] is not None:
                row[name] = worse(row[name], before[name])
        row["met"] = row["met"] and before["met"]
        rows.append(row)
    return rows


def left_of(option: Option, sized: Sized, machines: Machines, lost: int) -> list[Sized]:
    """Which replicas may be left of a deployment when so many nodes are lost: every outcome that no
    other is worse than.
    """
    per_node = machines.spec.gpus_per_node
    pools = [(sized.replicas, option.design.num_ranks)]
    if option.prefill is not None:
        pools.insert(0, (sized.prefill_replicas, option.prefill.num_ranks))
    nodes_of: list[tuple[int, frozenset[int]]] = []
    first = 0
    for pool, (count, ranks) in enumerate(pools):
        for _ in range(count):
            nodes_of.append(
                (pool, frozenset(range(first // per_node, (first + ranks - 1) // per_node + 1)))
            )
            first += ranks
    used = -(-first // per_node)
    idle = max(0, -(-sized.size // per_node) - used)
    gone = min(max(0, lost - idle), used)
    if gone == 0:
        return [sized]
    chosen = (
        combinations(range(used), gone)
        if used <= _MOST_NODES_IN_PAIRS
        else iter([tuple(range(gone))])
    )
    found: set[tuple[int, ...]] = set()
    for nodes in chosen:
        dead = [pool for pool, on in nodes_of if not on.isdisjoint(nodes)]
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
    lost: int,
    remaining: list[Sized],
    gpus: int,
) -> dict[str, Any]:
    serving = [
        one
        for one in remaining
        if one.replicas and (option.prefill is None or one.prefill_replicas)
    ]
    row: dict[str, Any] = {
        "nodes_lost": lost,
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
    """N+k: the cluster that keeps all targets with so many nodes lost, for none, one and two; and
    what that costs more.
    """
    machines = trials.space.machines[option.design.machines]
    per_node = machines.spec.gpus_per_node
    rows = []
    base: float | None = None
    for spare in (0, *LOST):
        finding = trials.find(option, Change(spare=spare))
        size = finding.sized.size if finding.sized is not None else None
        cost = cost_of(trials.space, finding) if size is not None else None
        base = cost if spare == 0 else base
        rows.append(
            {
                "nodes_lost": spare,
                "gpus": size,
                "nodes": None if size is None else -(-size // per_node),
                "cost_per_hour": cost,
                "extra_cost_per_hour": None if cost is None or base is None else cost - base,
                "why": finding.why,
            }
        )
    return rows


def idle_costs(trials: Trials, first: Finding, copying: Finding | None) -> dict[str, Any]:
    """What stands idle: GPUs that no replica of the first choice uses, besides those held back, and
    memory of copies of experts.

    Args:
        copying: the best deployment with copies, which need not be the first choice.
    """
    space, option = trials.space, first.option
    machines = space.machines[option.design.machines]
    unused = (
        0
        if first.sized is None
        else max(0, first.sized.size - first.num_gpus - space.spare_gpus(machines))
    )
    return {
        "unused_gpus": unused,
        "unused_cost_per_hour": unused * gpu_hour(space, option.design.machines),
        "held_back_nodes": space.question.spare.nodes,
        "held_back_cost_per_hour": space.spare_gpus(machines)
        * gpu_hour(space, option.design.machines),
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
        make_plan(space.spec(one, option.budget), seed, "plan", folder).capacity
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
