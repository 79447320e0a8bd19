"""The analytical screen: what every deployment of the space could carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.engine import find_kv_transfer
from simulator.cost.engine_time import streams_s
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.analytical import Curve, Floats
from simulator.planner.space import (
    NO_CACHE,
    NO_SPARES,
    REFUSES,
    TOO_FEW,
    TOO_SLOW,
    ReplicaShape,
    Ruled,
    Space,
    explain_no_room,
)
from simulator.planner.traffic import Traffic

SLACK = 1.5
"""Factor on latencies' targets in the optimistic reading: as much better than on average a
deployment may turn out."""
_BATCHES = 24
_HIGHEST_LOAD = 0.95
"""Share of what the engine could carry if requests came as evenly as they are served."""


class Rates(NamedTuple):
    """Requests a second that one replica carries, as estimated and read optimistically; 0 where a
    target cannot be kept.
    """

    likely: float
    most: float
    tpot_s: float
    ttft_s: float


class Limits(NamedTuple):
    """Binding limits of the targets, as means."""

    ttft_s: float
    tpot_s: float


class Served(NamedTuple):
    """A replica under rising loads; ``[n]`` each."""

    rates: Floats
    """Requests a second."""
    tpot_s: Floats
    """0 where nothing is decoded."""
    ttft_s: Floats
    """0 where no prompts are computed."""
    possible: NDArray[np.bool_]
    """Whether it can go on like that."""
    batches: Floats
    """Sequences on a data-parallel rank; share of the time that it is busy where it only computes
    prompts."""


class Judged(NamedTuple):
    """A replica of a pool, or of both phases."""

    shape: ReplicaShape
    rates: Rates
    served: Served
    budget: int

    @property
    def prompt_gpu_s(self) -> float:
        """GPU-seconds of a prompt at the rate that is likely."""
        return self.shape.num_ranks / self.rates.likely


class Judge:
    """Judges shapes, one after the other, for one question."""

    def __init__(self, space: Space, traffic: Traffic) -> None:
        self.space = space
        self.traffic = traffic
        self.limits = _limits(space)
        self._curves: dict[ReplicaShape, Curve] = {}
        self._most_tokens = max(space.question.space.token_budgets)

    def curve(self, shape: ReplicaShape, plan: DeploymentPlan) -> Curve:
        """The shape's curve; shapes with the same kernels share them."""
        key = shape.kernels
        found = Curve(plan, self.traffic, self._most_tokens, self._curves.get(key))
        self._curves.setdefault(key, found)
        return found

    def judge(
        self, phase: str, shape: ReplicaShape, plan: DeploymentPlan, curve: Curve, budget: int
    ) -> Judged:
        """Judge a replica, see :meth:`serve`."""
        served = self.serve(phase, plan, curve, budget)
        return Judged(shape, self.best(served), served, budget)

    def serve(self, phase: str, plan: DeploymentPlan, curve: Curve, budget: int) -> Served:
        """A replica of a pool: of ``prefill``, ``decode``, or ``both``."""
        if phase == "decode":
            return self.decoding(plan, curve)
        return (self.prefilling if phase == "prefill" else self.both)(plan, curve, budget)

    def both(self, plan: DeploymentPlan, curve: Curve, budget: int) -> Served:
        """A replica that computes prompts and decodes."""
        batches, engine = self._batches(plan), plan.placement.calibration.engine
        terms, busy = curve.steady_terms(batches, budget)
        step_s = terms.total
        if plan.serving.rules.mixes_phases:
            first_s = self._first_s(curve, budget, batches)
        else:
            first_s = self.alone_s(curve, budget) + step_s * (1 - busy) / 2
        waits_s = step_s * (0.5 + plan.steps_ahead)
        waits_s += first_s * busy / (2 * np.maximum(1 - busy, 0.02))
        streaming_s = streams_s(batches * plan.placement.layout.num_batches, engine.stream_s)
        ttft_s = engine.first_token_s + streaming_s + first_s + waits_s
        tpot_s = step_s / plan.placement.drafts.mean_kept
        rates = self._rates(plan, batches, tpot_s)
        return Served(rates, tpot_s, ttft_s, busy < _HIGHEST_LOAD, batches)

    def _rates(self, plan: DeploymentPlan, batches: Floats, tpot_s: Floats) -> Floats:
        """Requests a second that so many sequences on a data-parallel rank make."""
        sequences = batches * plan.placement.layout.num_batches
        return np.asarray(sequences / (self.traffic.num_output * tpot_s))

    def decoding(self, plan: DeploymentPlan, curve: Curve) -> Served:
        """A replica that only decodes."""
        batches = self._batches(plan)
        nothing = np.zeros(len(batches))
        tpot_s = curve.step_s(batches, nothing, 0.0) / plan.placement.drafts.mean_kept
        possible = np.full(len(batches), True)
        return Served(self._rates(plan, batches, tpot_s), tpot_s, nothing, possible, batches)

    def prefilling(self, plan: DeploymentPlan, curve: Curve, budget: int) -> Served:
        """A replica that only computes prompts."""
        prompt_s, alone_s = self.prompt_s(curve, budget), self.alone_s(curve, budget)
        busy = np.linspace(0.1, _HIGHEST_LOAD, _BATCHES)
        rates = busy * plan.placement.layout.num_batches / prompt_s
        ttft_s = (
            plan.placement.calibration.engine.first_token_s
            + find_kv_transfer(plan.spec.engine).handshake_s
            + alone_s
            + prompt_s * busy / (2 * (1 - busy))
        )
        return Served(rates, np.zeros(len(busy)), ttft_s, np.full(len(busy), True), busy)

    def prompt_s(self, curve: Curve, budget: int) -> float:
        """Seconds of a data-parallel rank for a prompt where steps are full."""
        together = max(1.0, budget / self.traffic.num_input)
        return float(
            curve.step_s(np.zeros(1), np.array([together]), self.traffic.num_input)[0] / together
        )

    def alone_s(self, curve: Curve, budget: int) -> float:
        """Seconds of a prompt by itself."""
        return float(self._first_s(curve, budget, np.zeros(1))[0])

    def _first_s(self, curve: Curve, budget: int, decodes: Floats) -> Floats:
        """Seconds of a prompt beside sequences that decode, in as many steps as the budget asks
        for.
        """
        parts = max(1.0, self.traffic.num_input / budget)
        part_s = curve.step_s(decodes, np.full_like(decodes, 1 / parts), self.traffic.num_input)
        return part_s * math.ceil(parts)

    def _batches(self, plan: DeploymentPlan) -> Floats:
        capacity, traffic, pp = plan.serving.capacity, self.traffic, plan.placement.layout.pp
        held = capacity.blocks_for(round(traffic.num_input + traffic.num_output / 2))
        most = max(
            1,
            min(plan.serving.rules.max_sequences, int(capacity.num_blocks * _HIGHEST_LOAD / held))
            // pp,
        )
        return np.geomspace(0.25, most, _BATCHES)

    def best(self, served: Served) -> Rates:
        """The highest rate that keeps the targets; and that keeps them read optimistically."""

        def highest(slack: float) -> int:
            within = (served.tpot_s <= self.limits.tpot_s * slack) & (
                served.ttft_s <= self.limits.ttft_s * slack
            )
            kept = served.possible & within
            return int(np.argmax(np.where(kept, served.rates, -1.0))) if kept.any() else -1

        likely, most = highest(1.0), highest(SLACK)
        shown = likely if likely >= 0 else 0
        return Rates(
            float(served.rates[likely]) if likely >= 0 else 0.0,
            float(served.rates[most]) if most >= 0 else 0.0,
            float(served.tpot_s[shown]),
            float(served.ttft_s[shown]),
        )


def _limits(space: Space) -> Limits:
    targets, slo = space.question.targets, space.question.workload.slo
    has_slo = targets.attainment is not None
    ttft_s, tpot_s = (
        min([*limits.limits().values(), (has_slo and own_s) or math.inf])
        for limits, own_s in ((targets.ttft_s, slo.ttft_s), (targets.tpot_s, slo.tpot_s))
    )
    return Limits(ttft_s, tpot_s)


class Speed(NamedTuple):
    """Speed of a replica that is kept busy, whatever the targets."""

    per_user: float
    """Output tokens per second of one user."""
    per_gpu: float
    """Output tokens per second of one GPU."""
    sequences: float
    """Sequences decoding on one data-parallel rank."""
    shape: ReplicaShape
    budget: int
    prefill: ReplicaShape | None = None
    """The replica that computes the prompts, where that is another pool."""


class Speeds(NamedTuple):
    """Speeds of one replica under several loads; ``[n]`` each."""

    per_user: Floats
    per_gpu: Floats
    sequences: Floats
    shape: ReplicaShape
    budget: int
    prefill: ReplicaShape | None = None
    """The replica that computes the prompts, where that is another pool."""


def find_front(speeds: list[Speeds]) -> list[Speed]:
    """Speeds that no other beats both for users and for GPUs, the fastest first."""
    if not speeds:
        return []
    per_user = np.concatenate([one.per_user for one in speeds])
    per_gpu = np.concatenate([one.per_gpu for one in speeds])
    order = np.lexsort((-per_gpu, -per_user))
    best = np.maximum.accumulate(np.concatenate([[0.0], per_gpu[order]]))
    ends = np.cumsum([len(one.per_user) for one in speeds])
    found = []
    for place in order[per_gpu[order] > best[:-1]]:
        n = int(np.searchsorted(ends, place, side="right"))
        one, at = speeds[n], int(place - ends[n])
        figures = one.per_user, one.per_gpu, one.sequences
        users, made, sequences = (float(values[at]) for values in figures)
        found.append(Speed(users, made, sequences, one.shape, one.budget, one.prefill))
    return found


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
    pooled: list[Speed]
    """Pareto front of replicas that only decode, with the prefill pool that keeps the targets in
    fewest GPU-seconds a prompt."""


class _Pools(NamedTuple):
    """Replicas for pools of the same model, formats and machines."""

    prompts: list[Judged]
    decodes: list[Judged]


def screen(space: Space, traffic: Traffic, model: int, machines: int) -> Screened:
    """Judge every deployment of one model on one kind of machines."""
    ruled = Ruled()
    context = space.models[model].max_context_tokens
    share = traffic.share_beyond(context)
    if share > _MOST_TOO_LONG:
        text = (
            f"{100 * share:.0f} % of the requests are longer than its context of {context:,} tokens"
        )
        ruled.leave_out(text, space.models[model].name, space.num_splits(model))
        return Screened([], 0, ruled, [], [])
    screening = _Screening(space, traffic, ruled)
    for shape, plan in space.shapes(model, machines, ruled):
        screening.judge_shape(shape, plan)
    return screening.finish()


class _Screening:
    """Judges shapes, one after the other, and gathers what they make."""

    def __init__(self, space: Space, traffic: Traffic, ruled: Ruled) -> None:
        self._space, self._traffic, self._ruled = space, traffic, ruled
        self._judge = Judge(space, traffic)
        self._candidates: list[Candidate] = []
        self._speeds: list[Speeds] = []
        self._pools: dict[tuple[str, str, str, float], _Pools] = {}
        """By number formats of weights, cache and dispatch, and the share of the memory."""
        self._longest = int((traffic.trace.num_input + traffic.trace.num_output).max())
        self._longest_prompt = int(traffic.trace.num_input.max())

    def judge_shape(self, shape: ReplicaShape, plan: DeploymentPlan) -> None:
        """Judge a shape by itself with every budget, and as a replica of pools."""
        capacity, asked = plan.serving.capacity, self._space.question.space
        has_room, has_prompts_room = (
            capacity.blocks_for(most) <= capacity.num_blocks
            for most in (self._longest, self._longest_prompt)
        )
        if not has_room:
            self._ruled.leave_out(NO_CACHE, self._space.text(shape), len(asked.token_budgets))
        if not has_prompts_room:
            return
        budgets = [one for one in asked.token_budgets if self._takes_prompts(shape, plan, one)]
        num_refusing = len(asked.token_budgets) - len(budgets)
        self._ruled.leave_out(REFUSES, self._space.text(shape), num_refusing)
        if not budgets:
            return
        curve = self._judge.curve(shape, plan)
        for budget in budgets if has_room else ():
            one = self._judge.judge("both", shape, plan, curve, budget)
            candidate = size_candidate(
                self._space, self._traffic, shape, budget, one.rates, self._ruled
            )
            self._candidates += [] if candidate is None else [candidate]
            self._speeds.append(_measure_speeds(self._traffic, one))
        if asked.disaggregate:
            self._add_to_pools(shape, plan, curve, has_room)

    def _takes_prompts(self, shape: ReplicaShape, plan: DeploymentPlan, budget: int) -> bool:
        """Whether a step takes the longest prompt, or the search may have it cut into chunks."""
        scheduling = self._space.variants[shape.model].table.get("scheduling", {})
        refuses = plan.serving.rules.refuses_long and "chunked_prompts" in scheduling
        return not refuses or self._longest_prompt <= budget

    def _add_to_pools(
        self, shape: ReplicaShape, plan: DeploymentPlan, curve: Curve, has_room: bool
    ) -> None:
        asked, budget = self._space.question.space, self._space.question.space.token_budgets[-1]
        prefilling, decoding = (
            self._judge.judge(phase, shape, plan, curve, budget) for phase in ("prefill", "decode")
        )
        # A prefill pool has the decode pool's placement.
        usual_sequences = (asked.max_sequences or (0,))[0]
        usual_placement = _choose_placement(self._space, shape)
        is_usual = (shape.max_sequences, shape.placement) == (usual_sequences, usual_placement)
        sents = self._space.variants[shape.model].entry.dispatch_dtypes or ("",)
        for sent in (shape.dispatch_dtype,) if shape.dispatch_dtype else sents:
            key = shape.weight_dtype, shape.kv_dtype, sent, shape.memory_fraction
            pools = self._pools.setdefault(key, _Pools([], []))
            if is_usual:
                pools.prompts.append(prefilling)
            if has_room:
                pools.decodes.append(decoding)

    def finish(self) -> Screened:
        """Pair pools, and choose candidates among all deployments."""
        candidates, num_legal = self._candidates, len(self._candidates)
        pooled: list[Speeds] = []
        for pools in self._pools.values():
            found, number = pair_pools(self._space, self._traffic, *pools, self._ruled)
            candidates = candidates + found
            num_legal += number
            able = [one for one in pools.prompts if one.rates.likely > 0]
            for one in pools.decodes if able else ():
                best = min(able, key=lambda pool: (pool.prompt_gpu_s, pool.shape, pool.budget))
                pooled.append(_measure_speeds(self._traffic, one, best))
        return Screened(
            _choose_candidates(candidates),
            num_legal,
            self._ruled,
            find_front(self._speeds),
            find_front(pooled),
        )


def _choose_placement(space: Space, shape: ReplicaShape) -> str:
    """Placement of experts before anything is known of their load: in order, unless that is not
    among what was asked for.
    """
    is_chosen = shape.ep > 1 and not shape.slots
    placements = space.question.space.placements
    return "eplb" if is_chosen and "contiguous" not in placements else "contiguous"


def _measure_speeds(traffic: Traffic, one: Judged, prefill: Judged | None = None) -> Speeds:
    """Speeds of a replica, for whose users a pool for prompts may take further GPU-seconds."""
    served, kept = one.served, one.served.possible
    seconds, prompts = (0.0, None) if prefill is None else (prefill.prompt_gpu_s, prefill.shape)
    per_gpu = traffic.num_output / (one.shape.num_ranks / served.rates[kept] + seconds)
    budget = (prefill or one).budget
    return Speeds(
        1 / served.tpot_s[kept], per_gpu, served.batches[kept], one.shape, budget, prompts
    )


def _choose_candidates(candidates: list[Candidate]) -> list[Candidate]:
    """The cheapest as estimated, and those that could be cheapest."""
    likely = sorted(candidates, key=by_cost)[:_KEPT]
    hopeful = sorted(candidates, key=lambda candidate: (candidate.least_gpus, *by_cost(candidate)))[
        : _KEPT // 2
    ]
    return sorted(dict.fromkeys([*likely, *hopeful]), key=by_cost)


def by_cost(candidate: Candidate) -> tuple[object, ...]:
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


def size_candidate(
    space: Space, traffic: Traffic, shape: ReplicaShape, budget: int, rates: Rates, ruled: Ruled
) -> Candidate | None:
    """The deployment of as many replicas as carry the traffic; ``None`` where it is ruled out."""
    machines = space.machines_at(shape)
    if rates.most == 0:
        ruled.leave_out(TOO_SLOW, space.text(shape))
        return None
    replicas, least = (
        math.ceil(traffic.rate_per_s / rate) if rate > 0 else 0
        for rate in (rates.likely, rates.most)
    )
    alone = shape, None
    if space.find_cluster(alone, (least, 0)) is None:
        no_room, text = explain_no_room(space, shape, least), space.text(shape)
        few = f"{space.count_gpus(alone, (least, 0)):,} GPUs or more"
        ruled.leave_out(NO_SPARES if no_room else TOO_FEW, f"{text}: {no_room or few}")
        return None
    most, count = machines.sizes[-1], replicas or least
    return Candidate(
        shape,
        budget,
        prefill=None,
        replicas=min(count, most // shape.num_ranks),
        prefill_replicas=0,
        cost_per_hour=(space.find_cluster(alone, (count, 0)) or most) * machines.gpu_hour,
        gpus=count * shape.num_ranks,
        least_gpus=least * shape.num_ranks,
        tpot_s=rates.tpot_s,
        ttft_s=rates.ttft_s,
    )


def pair_pools(
    space: Space,
    traffic: Traffic,
    prompts: Sequence[Judged],
    decodes: Sequence[Judged],
    ruled: Ruled,
) -> tuple[list[Candidate], int]:
    """Prefill pools with decode pools of the same model, formats and machines: the best of them,
    and how many are possible.
    """
    prompts = [one for one in prompts if one.rates.most > 0]
    decodes = [one for one in decodes if one.rates.most > 0]
    if not prompts or not decodes:
        return [], 0
    machines = space.machines_at(prompts[0].shape)
    sizes = np.array(machines.sizes)
    spare = np.array(
        [[space.spare_gpus(two.shape, one.shape) for two in decodes] for one in prompts]
    )
    first, second = (_measure_needs(space, traffic, pool) for pool in (prompts, decodes))
    gpus, least, likely, needed = (
        one[:, None] + two[None, :] for one, two in zip(first[1:], second[1:], strict=True)
    )
    needed = needed + spare
    held = sizes[np.minimum(np.searchsorted(sizes, likely + spare), len(sizes) - 1)]
    possible = needed <= sizes[-1]
    number = int(possible.sum())
    if number < possible.size:
        p, d = np.argwhere(~possible)[0]
        example = (
            f"{space.text(decodes[d].shape)}, prompts "
            f"on {space.split(prompts[p].shape)}: {int(needed[p, d]):,} GPUs or more"
        )
        ruled.leave_out(TOO_FEW, example, possible.size - number)
    order = np.lexsort((least[possible], gpus[possible], held[possible]))[:_KEPT]
    hopeful = np.lexsort((gpus[possible], least[possible]))[: _KEPT // 2]
    places = np.argwhere(possible)[np.unique(np.concatenate([order, hopeful]))]
    return [
        Candidate(
            decodes[d].shape,
            prompts[p].budget,
            prompts[p].shape,
            replicas=int(min(second.replicas[d], sizes[-1] // decodes[d].shape.num_ranks)),
            prefill_replicas=int(min(first.replicas[p], sizes[-1] // prompts[p].shape.num_ranks)),
            cost_per_hour=float(held[p, d] * machines.gpu_hour),
            gpus=int(gpus[p, d]),
            least_gpus=int(least[p, d]),
            tpot_s=decodes[d].rates.tpot_s,
            ttft_s=prompts[p].rates.ttft_s,
        )
        for p, d in places
    ], number


class _Needs(NamedTuple):
    """Replicas of each kind of a pool that carry the traffic, and their GPUs; ``[n]`` each."""

    replicas: NDArray[np.int64]
    gpus: NDArray[np.int64]
    least_gpus: NDArray[np.int64]
    """GPUs where they do better than on average."""
    gpus_held: NDArray[np.int64]
    """GPUs with those of the spare replicas."""
    least_held: NDArray[np.int64]
    """Least GPUs with those of the spare replicas."""


def _measure_needs(space: Space, traffic: Traffic, pool: Sequence[Judged]) -> _Needs:
    shapes = [one.shape for one in pool]
    rates = np.array([[one.rates.likely, one.rates.most] for one in pool]).T
    with np.errstate(divide="ignore"):
        counts = np.ceil(np.minimum(traffic.rate_per_s / rates, 1e6)).astype(np.int64)
    held = counts + [
        [space.count_spares(*one, in_pools=True) for one in zip(shapes, row, strict=True)]
        for row in counts.tolist()
    ]
    ranks = np.array([shape.num_ranks for shape in shapes])
    return _Needs(counts[0], *(counts * ranks), *(held * ranks))
