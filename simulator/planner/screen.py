"""The closed-form screen: what every deployment of the space could carry, roughly; and which of
them are worth simulating.

What one replica carries is in :mod:`simulator.planner.judge`; here replicas become deployments: how
many of them, in which pools, on how large a cluster. Latencies are means without chance, so a
deployment is also read optimistically before it is left out.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.planner.judge import Judge, Rates, Served
from simulator.planner.ruled_out import NO_CACHE, TOO_FEW, TOO_SLOW, Ruled
from simulator.planner.space import ReplicaShape, Space
from simulator.planner.speeds import Speed, Speeds, pareto
from simulator.planner.traffic import Traffic

_KEPT = 64
"""Deployments of one model on one kind of machines that are candidates for simulation."""
_MOST_TOO_LONG = 0.01
"""Share of the requests that may be longer than a model's context: they are counted as served."""


class Candidate(NamedTuple):
    """A deployment that the screen judged."""

    shape: ReplicaShape
    budget: int
    prefill: ReplicaShape | None
    replicas: int
    """Estimated replicas; those that decode where prompts have their own pool."""
    prefill_replicas: int
    cost_per_hour: float
    """Cost of the cluster that holds them."""
    least_cost_per_hour: float
    """Cost where the deployment does better than on average."""
    gpus: int
    least_gpus: int
    """GPUs where the deployment does better than on average."""
    tpot_s: float
    ttft_s: float

    @property
    def sides(self) -> tuple[ReplicaShape, ReplicaShape | None]:
        """Shape of its replicas, and of those that compute prompts where these are a pool."""
        return self.shape, self.prefill

    def count_gpus(self, replicas: int, prefill_replicas: int = 0) -> int:
        """GPUs that so many replicas take up."""
        prompts = 0 if self.prefill is None else prefill_replicas * self.prefill.num_ranks
        return replicas * self.shape.num_ranks + prompts


class Screened(NamedTuple):
    """Candidates of one model on one kind of machines."""

    candidates: list[Candidate]
    """The cheapest, and those that might be when read optimistically; the cheapest first."""
    num_legal: int
    """Deployments that could keep the targets."""
    ruled: Ruled
    front: list[Speed]
    """Pareto front of replicas for both phases."""
    pooled: list[tuple[Speed, ReplicaShape]]
    """Pareto front of replicas that only decode, with the prefill pool that keeps the targets in
    fewest GPU-seconds a prompt."""


def screen(space: Space, traffic: Traffic, model: int, machines: int) -> Screened:
    """Judge every deployment of one model on one kind of machines."""
    judge = Judge(space, traffic)
    candidates: list[Candidate] = []
    pools: dict[
        tuple[str, str, str],
        tuple[
            list[tuple[ReplicaShape, Rates, int]], list[tuple[ReplicaShape, Rates]], list[Served]
        ],
    ] = {}
    asked = space.question.space
    budgets, sents = asked.token_budgets, space.variants[model].entry.dispatch_dtypes or ("",)
    usual_sequences = (asked.max_sequences or (0,))[0]
    ruled = Ruled()
    speeds: list[Speeds] = []
    share, context = (
        traffic.share_beyond(space.models[model].max_context_tokens),
        space.models[model].max_context_tokens,
    )
    if share > _MOST_TOO_LONG:
        text = (
            f"{100 * share:.0f} % of the requests are longer than its context of {context:,} tokens"
        )
        ruled.leave_out(text, space.models[model].name, space.num_splits(model))
        return Screened([], 0, ruled, [], [])
    longest, longest_prompt = (
        int((traffic.trace.num_input + traffic.trace.num_output).max()),
        int(traffic.trace.num_input.max()),
    )
    for shape, plan in space.shapes(model, machines, ruled):
        capacity = plan.serving.capacity
        has_room, has_prompts_room = (
            capacity.blocks_for(most) <= capacity.num_blocks for most in (longest, longest_prompt)
        )
        if not has_room:
            ruled.leave_out(NO_CACHE, space.text(shape), len(budgets))
        if not has_prompts_room:
            continue
        curve = judge.curve(shape, plan)
        for budget in budgets if has_room else ():
            served = judge.both(plan, curve, budget)
            _add_candidate(candidates, space, traffic, shape, budget, judge.best(served), ruled)
            speeds.append(_measure_speeds(traffic, served, shape, budget))
        if asked.disaggregate:
            prefilling, decoding = (
                judge.best(judge.prefilling(plan, curve, budgets[-1])),
                judge.decoding(plan, curve),
            )
            for sent in (shape.dispatch_dtype,) if shape.dispatch_dtype else sents:
                prompts, decodes, loads = pools.setdefault(
                    (shape.weight_dtype, shape.kv_dtype, sent), ([], [], [])
                )
                if shape.max_sequences == usual_sequences and shape.placement == _choose_placement(
                    space, shape
                ):  # a prefill pool has the decode pool's placement
                    prompts.append((shape, prefilling, budgets[-1]))
                if has_room:
                    loads.append(decoding)
                    decodes.append((shape, judge.best(decoding)))
    num_legal = len(candidates)
    pooled: list[Speeds] = []
    for prompts, decodes, loads in pools.values():
        found, number = _pair_pools(space, traffic, prompts, decodes, ruled)
        candidates += found
        num_legal += number
        able = [
            (shape.num_ranks / rates.likely, shape, budget)
            for shape, rates, budget in prompts
            if rates.likely > 0
        ]
        for (shape, _), served in zip(decodes, loads, strict=True) if able else ():
            pooled.append(_measure_speeds(traffic, served, shape, min(able)[2], min(able)))
    front = [speed for speed, _ in pareto(speeds)]
    return Screened(
        _choose_candidates(candidates),
        num_legal,
        ruled,
        front,
        [(speed, prefill) for speed, prefill in pareto(pooled) if prefill],
    )


def _choose_placement(space: Space, shape: ReplicaShape) -> str:
    """Placement of experts before anything is known of their load: in order, unless that is not
    among what was asked for.
    """
    is_chosen = shape.ep > 1 and not shape.slots
    placements = space.question.space.placements
    return "eplb" if is_chosen and "contiguous" not in placements else "contiguous"


def _measure_speeds(
    traffic: Traffic,
    served: Served,
    shape: ReplicaShape,
    budget: int,
    prefill: tuple[float, ReplicaShape, int] | None = None,
) -> Speeds:
    """Speeds of a replica, for whose users a pool for prompts may take further GPU-seconds."""
    kept = served.possible
    seconds, prompts = (0.0, None) if prefill is None else prefill[:2]
    per_gpu = traffic.num_output / (shape.num_ranks / served.rates[kept] + seconds)
    return Speeds(1 / served.tpot_s[kept], per_gpu, served.batches[kept], shape, budget, prompts)


def _choose_candidates(candidates: list[Candidate]) -> list[Candidate]:
    """The cheapest as estimated, and those that could be cheapest."""
    likely = sorted(candidates, key=by_cost)[:_KEPT]
    hopeful = sorted(candidates, key=lambda candidate: (candidate.least_gpus, *by_cost(candidate)))[
        : _KEPT // 2
    ]
    return sorted(dict.fromkeys([*likely, *hopeful]), key=by_cost)


def by_cost(candidate: Candidate) -> tuple[Any, ...]:
    """The order of deployments that were screened, the best first."""
    return (
        candidate.cost_per_hour,
        candidate.gpus,
        count_features(candidate),
        candidate.least_gpus,
        candidate.prefill or (),
        candidate.shape,
        candidate.budget,
    )


def count_features(candidate: Candidate) -> int:
    """Number of features that a plain deployment has not: a pool for prompts, stages, moved
    experts, overlapping halves.
    """
    shape = candidate.shape
    moved = shape.slots > 0 or shape.placement != "contiguous"
    return (candidate.prefill is not None) + (shape.pp > 1) + moved + (shape.overlap != "none")


def _add_candidate(
    candidates: list[Candidate],
    space: Space,
    traffic: Traffic,
    shape: ReplicaShape,
    budget: int,
    found: Rates,
    ruled: Ruled,
) -> None:
    machines = space.machines_at(shape)
    if found.most == 0:
        ruled.leave_out(TOO_SLOW, space.text(shape))
        return
    replicas, least = (
        math.ceil(traffic.rate_per_s / rate) if rate > 0 else 0
        for rate in (found.likely, found.most)
    )
    held, least_held = (
        space.find_cluster(number * shape.num_ranks, shape) for number in (replicas or least, least)
    )
    if least_held is None:
        ruled.leave_out(TOO_FEW, f"{space.text(shape)}: {least * shape.num_ranks:,} GPUs or more")
        return
    price, most = machines.gpu_hour, machines.sizes[-1]
    candidates.append(
        Candidate(
            shape,
            budget,
            None,
            min(replicas or least, most // shape.num_ranks),
            0,
            (held or most) * price,
            least_held * price,
            (replicas or least) * shape.num_ranks,
            least * shape.num_ranks,
            found.tpot_s,
            found.ttft_s,
        )
    )


def _pair_pools(
    space: Space,
    traffic: Traffic,
    prompts: list[tuple[ReplicaShape, Rates, int]],
    decodes: list[tuple[ReplicaShape, Rates]],
    ruled: Ruled,
) -> tuple[list[Candidate], int]:
    """Prefill pools with decode pools of the same model, formats and machines: the best of them,
    and how many are possible.
    """
    prompts = [one for one in prompts if one[1].most > 0]
    decodes = [one for one in decodes if one[1].most > 0]
    if not prompts or not decodes:
        return [], 0
    machines = space.machines_at(prompts[0][0])
    price, sizes = machines.gpu_hour, np.array(machines.sizes)
    spare = np.array(
        [[space.spare_gpus(shape, prefill) for shape, _ in decodes] for prefill, _, _ in prompts]
    )

    def count_gpus(
        rates: list[float], ranks: list[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        with np.errstate(divide="ignore"):
            replicas = np.ceil(np.minimum(traffic.rate_per_s / np.array(rates), 1e6)).astype(
                np.int64
            )
        return replicas, replicas * np.array(ranks)

    first = [
        count_gpus([getattr(r, name) for _, r, _ in prompts], [d.num_ranks for d, _, _ in prompts])
        for name in ("likely", "most")
    ]
    second = [
        count_gpus([getattr(r, name) for _, r in decodes], [d.num_ranks for d, _ in decodes])
        for name in ("likely", "most")
    ]
    gpus, least = (first[n][1][:, None] + second[n][1][None, :] for n in range(2))
    held, least_held = (
        sizes[np.minimum(np.searchsorted(sizes, g + spare), len(sizes) - 1)] for g in (gpus, least)
    )
    possible = least + spare <= sizes[-1]
    number = int(possible.sum())
    if number < possible.size:
        p, d = np.argwhere(~possible)[0]
        example = (
            f"{space.text(decodes[d][0])}, prompts "
            f"on {space.split(prompts[p][0])}: {int(least[p, d]):,} GPUs or more"
        )
        ruled.leave_out(TOO_FEW, example, possible.size - number)
    order = np.lexsort((least[possible], gpus[possible], held[possible]))[:_KEPT]
    hopeful = np.lexsort((gpus[possible], least[possible]))[: _KEPT // 2]
    places = np.argwhere(possible)[np.unique(np.concatenate([order, hopeful]))]
    found = []
    for p, d in places:
        (prefill, p_rates, budget), (decode, d_rates) = prompts[p], decodes[d]
        found.append(
            Candidate(
                decode,
                budget,
                prefill,
                int(min(second[0][0][d], sizes[-1] // decode.num_ranks)),
                int(min(first[0][0][p], sizes[-1] // prefill.num_ranks)),
                float(held[p, d] * price),
                float(least_held[p, d] * price),
                int(gpus[p, d]),
                int(least[p, d]),
                d_rates.tpot_s,
                p_rates.ttft_s,
            )
        )
    return found, number
