"""The closed-form screen: what every deployment of the space could carry, roughly; and which of
them are worth simulating.

In the steady state a replica with ``b`` sequences decoding on each data-parallel rank starts ``b /
O`` prompts a step (``O`` mean output tokens), so everything follows from ``b``: the step's seconds,
the time per token, the rate, the memory. The most that a deployment carries is at the largest ``b``
that keeps the targets. Latencies are means without chance, so a deployment is given the benefit of
``SLACK`` before it is left out.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.plan import Plan
from simulator.planner.curve import Curve, Floats
from simulator.planner.space import NO_CACHE, TOO_FEW, TOO_SLOW, Design, Ruled, Space
from simulator.planner.speeds import Speed, Speeds, pareto
from simulator.planner.traffic import Traffic

SLACK = 1.5
"""How much better than on average a deployment may turn out: factor on latencies' targets in the
optimistic reading."""
_BATCHES = 24
_KEPT = 64
"""Deployments of one model on one kind of machines that are candidates for simulation."""
_MOST_TOO_LONG = 0.01
"""Share of the requests that may be longer than a model's context: they are counted as served."""
_HIGHEST_LOAD = 0.95
"""Of what the engine could carry if requests came as evenly as they are served."""


class Option(NamedTuple):
    """A deployment that the screen judged."""

    design: Design
    budget: int
    prefill: Design | None
    replicas: int
    """As estimated; of the decode pool where prompts have their own."""
    prefill_replicas: int
    cost_per_hour: float
    """Of the cluster that holds them."""
    least_cost_per_hour: float
    """Read optimistically; likewise below."""
    gpus: int
    least_gpus: int
    tpot_s: float
    ttft_s: float


class Rates(NamedTuple):
    """What one replica carries: as estimated, and read optimistically. Requests a second; 0 where a
    target cannot be kept.
    """

    likely: float
    most: float
    tpot_s: float
    ttft_s: float


class Limits(NamedTuple):
    """The tightest of the targets, as means."""

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


class Judge:
    """Judges designs, one after the other, for one question."""

    def __init__(self, space: Space, traffic: Traffic) -> None:
        self.space = space
        self.traffic = traffic
        self.limits = _limits(space)
        self._curves: dict[Design, Curve] = {}
        self._most_tokens = max(space.question.space.token_budgets)

    def curve(self, design: Design, plan: Plan) -> Curve:
        """The design's curve; designs with the same kernels share them."""
        key = design.kernels
        found = Curve(plan, self.traffic, self._most_tokens, self._curves.get(key))
        self._curves.setdefault(key, found)
        return found

    def both(self, plan: Plan, curve: Curve, budget: int) -> Served:
        """A replica that computes prompts and decodes."""
        batches, step_s, ttft_s, possible = self._loads(plan, curve, budget)
        rates = batches * plan.layout.num_batches / (self.traffic.num_output * step_s)
        return Served(rates, step_s, ttft_s, possible, batches)

    def _loads(
        self, plan: Plan, curve: Curve, budget: int
    ) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
        """By sequences on a data-parallel rank: these, seconds a token, to the first token, and
        whether the budget suffices.
        """
        traffic = self.traffic
        batches = self._batches(plan)
        prompts = batches / traffic.num_output
        splits = plan.rules.mixes_phases
        if splits:
            step_s = curve.step_s(batches, prompts, traffic.num_input)
            stays = batches * (1 + traffic.num_input / traffic.num_output) <= budget * _HIGHEST_LOAD
            chunks = math.ceil(traffic.num_input / max(1.0, budget))
            full_s = curve.step_s(
                batches,
                np.full(len(batches), min(1.0, budget / traffic.num_input)),
                traffic.num_input,
            )
            first_s = full_s * chunks
            busy = batches * (1 + traffic.num_input / traffic.num_output) / budget
        else:
            decode_s = curve.step_s(batches, np.zeros(len(batches)), 0.0)
            # Prompts that came during a step share the next one, the ranks that got none idle: at
            # the least one prompt's time.
            coming = prompts * plan.layout.num_batches
            together = np.clip(prompts, 1.0, max(1.0, budget / traffic.num_input))
            pause_s = (
                np.minimum(coming, 1.0)
                * self._prompts_s(curve, budget, together)
                * np.maximum(1.0, prompts / together)
            )
            step_s = decode_s + pause_s
            stays = np.full(len(batches), True)
            first_s = np.full(len(batches), self.alone_s(curve, budget)) + decode_s / 2
            busy = pause_s / step_s
        waits = step_s / 2 + first_s * busy / (2 * np.maximum(1 - busy, 0.02))
        ttft_s = plan.calibration.engine.first_token_s + first_s + waits
        return batches, step_s, ttft_s, stays & (busy < _HIGHEST_LOAD)

    def decoding(self, plan: Plan, curve: Curve) -> Served:
        """A replica that only decodes."""
        batches = self._batches(plan)
        step_s = curve.step_s(batches, np.zeros(len(batches)), 0.0)
        rates = batches * plan.layout.num_batches / (self.traffic.num_output * step_s)
        return Served(rates, step_s, np.zeros(len(batches)), np.full(len(batches), True), batches)

    def prefilling(self, plan: Plan, curve: Curve, budget: int) -> Served:
        """A replica that only computes prompts."""
        prompt_s, alone_s = self.prompt_s(curve, budget), self.alone_s(curve, budget)
        busy = np.linspace(0.1, _HIGHEST_LOAD, _BATCHES)
        rates = busy * plan.layout.num_batches / prompt_s
        fit = plan.calibration.pools
        own_s, ratio = (
            (plan.calibration.engine.first_token_s, 1.0)
            if fit is None
            else (fit.first_token_s, fit.prefill_ratio)
        )
        ttft_s = own_s + ratio * (alone_s + prompt_s * busy / (2 * (1 - busy)))
        return Served(rates, np.zeros(len(busy)), ttft_s, np.full(len(busy), True), busy)

    def prompt_s(self, curve: Curve, budget: int) -> float:
        """Seconds of a data-parallel rank for a prompt where steps are full."""
        together = max(1.0, budget / self.traffic.num_input)
        return float(
            curve.step_s(np.zeros(1), np.array([together]), self.traffic.num_input)[0] / together
        )

    def _prompts_s(self, curve: Curve, budget: int, together: Floats) -> Floats:
        """Seconds of a step with ``[n]`` prompts, in as many parts as the budget asks for."""
        parts = max(1.0, self.traffic.num_input / budget)
        return curve.step_s(
            np.zeros(len(together)), together / parts, self.traffic.num_input
        ) * math.ceil(parts)

    def alone_s(self, curve: Curve, budget: int) -> float:
        """Seconds of a prompt by itself."""
        parts = max(1.0, self.traffic.num_input / budget)
        return float(
            curve.step_s(np.zeros(1), np.array([1 / parts]), self.traffic.num_input)[0]
            * math.ceil(parts)
        )

    def _batches(self, plan: Plan) -> Floats:
        capacity, traffic, pp = plan.capacity, self.traffic, plan.layout.pp
        held = capacity.blocks_for(round(traffic.num_input + traffic.num_output / 2))
        most = max(
            1, min(plan.rules.max_sequences, int(capacity.num_blocks * _HIGHEST_LOAD / held)) // pp
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


class Screened(NamedTuple):
    """What is left of one model on one kind of machines."""

    options: list[Option]
    """The cheapest, and those that might be when read optimistically; the cheapest first."""
    num_legal: int
    """Deployments that could keep the targets."""
    ruled: Ruled
    front: list[Speed]
    """The Pareto front of replicas for both phases ..."""
    pooled: list[tuple[Speed, Design]]
    """... and of those that only decode, with the prefill pool that keeps the targets in fewest
    GPU-seconds a prompt."""


def screen(space: Space, traffic: Traffic, model: int, machines: int) -> Screened:
    """Judge every deployment of one model on one kind of machines."""
    judge = Judge(space, traffic)
    options: list[Option] = []
    pools: dict[
        tuple[str, str, str],
        tuple[list[tuple[Design, Rates, int]], list[tuple[Design, Rates]], list[Served]],
    ] = {}
    asked = space.question.space
    budgets, sents = asked.token_budgets, space.candidates[model].entry.dispatch_dtypes or ("",)
    usual = asked.max_sequences[0], "contiguous" if "contiguous" in asked.placements else "eplb"
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
        ruled.out(text, space.models[model].name, space.num_splits(model))
        return Screened([], 0, ruled, [], [])
    longest, longest_prompt = (
        int((traffic.trace.num_input + traffic.trace.num_output).max()),
        int(traffic.trace.num_input.max()),
    )
    for design, plan in space.designs(model, machines, ruled):
        capacity = plan.capacity
        has_room, has_prompts_room = (
            capacity.blocks_for(most) <= capacity.num_blocks for most in (longest, longest_prompt)
        )
        if not has_room:
            ruled.out(NO_CACHE, space.text(design), len(budgets))
        if not has_prompts_room:
            continue
        curve = judge.curve(design, plan)
        for budget in budgets if has_room else ():
            served = judge.both(plan, curve, budget)
            _add(options, space, traffic, design, budget, judge.best(served), ruled)
            speeds.append(_speeds(traffic, served, design, budget))
        if asked.disaggregate:
            prefilling, decoding = (
                judge.best(judge.prefilling(plan, curve, budgets[-1])),
                judge.decoding(plan, curve),
            )
            for sent in (design.dispatch_dtype,) if design.dispatch_dtype else sents:
                prompts, decodes, loads = pools.setdefault(
                    (design.weight_dtype, design.kv_dtype, sent), ([], [], [])
                )
                if (
                    design.max_sequences,
                    design.placement,
                ) == usual:  # a prefill pool has the decode pool's placement
                    prompts.append((design, prefilling, budgets[-1]))
                if has_room:
                    loads.append(decoding)
                    decodes.append((design, judge.best(decoding)))
    num_legal = len(options)
    pooled: list[Speeds] = []
    for prompts, decodes, loads in pools.values():
        found, number = _pairs(space, traffic, prompts, decodes, ruled)
        options += found
        num_legal += number
        able = [
            (design.num_ranks / rates.likely, design, budget)
            for design, rates, budget in prompts
            if rates.likely > 0
        ]
        for (design, _), served in zip(decodes, loads, strict=True) if able else ():
            pooled.append(_speeds(traffic, served, design, min(able)[2], min(able)))
    front = [speed for speed, _ in pareto(speeds)]
    return Screened(
        _kept(options),
        num_legal,
        ruled,
        front,
        [(speed, prefill) for speed, prefill in pareto(pooled) if prefill],
    )


def _speeds(
    traffic: Traffic,
    served: Served,
    design: Design,
    budget: int,
    prefill: tuple[float, Design, int] | None = None,
) -> Speeds:
    """Of a replica with what else its GPUs' users take: GPU-seconds of a prompt in a pool for
    prompts.
    """
    kept = served.possible
    seconds, prompts = (0.0, None) if prefill is None else prefill[:2]
    per_gpu = traffic.num_output / (design.num_ranks / served.rates[kept] + seconds)
    return Speeds(1 / served.tpot_s[kept], per_gpu, served.batches[kept], design, budget, prompts)


def _kept(options: list[Option]) -> list[Option]:
    """The cheapest as estimated, and those that could be cheapest."""
    likely = sorted(options, key=by_cost)[:_KEPT]
    hopeful = sorted(options, key=lambda option: (option.least_gpus, *by_cost(option)))[
        : _KEPT // 2
    ]
    return sorted(dict.fromkeys([*likely, *hopeful]), key=by_cost)


def by_cost(option: Option) -> tuple[Any, ...]:
    """The order of deployments that were screened, the best first."""
    return (
        option.cost_per_hour,
        option.gpus,
        parts(option),
        option.least_gpus,
        option.prefill or (),
        option.design,
        option.budget,
    )


def parts(option: Option) -> int:
    """How many things a deployment has that a plain one has not: a pool for prompts, stages, moved
    experts, overlapping halves.
    """
    design = option.design
    moved = design.slots > 0 or design.placement != "contiguous"
    return (option.prefill is not None) + (design.pp > 1) + moved + (design.overlap != "none")


def _add(
    options: list[Option],
    space: Space,
    traffic: Traffic,
    design: Design,
    budget: int,
    found: Rates,
    ruled: Ruled,
) -> None:
    machines = space.machines[design.machines]
    if found.most == 0:
        ruled.out(TOO_SLOW, space.text(design))
        return
    replicas, least = (
        math.ceil(traffic.rate_per_s / rate) if rate > 0 else 0
        for rate in (found.likely, found.most)
    )
    held, least_held = (
        space.held(machines, number * design.num_ranks) for number in (replicas or least, least)
    )
    if least_held is None:
        ruled.out(TOO_FEW, f"{space.text(design)}: {least * design.num_ranks:,} GPUs or more")
        return
    price, most = machines.gpu_hour, machines.sizes[-1]
    options.append(
        Option(
            design,
            budget,
            None,
            min(replicas or least, most // design.num_ranks),
            0,
            (held or most) * price,
            least_held * price,
            (replicas or least) * design.num_ranks,
            least * design.num_ranks,
            found.tpot_s,
            found.ttft_s,
        )
    )


def _pairs(
    space: Space,
    traffic: Traffic,
    prompts: list[tuple[Design, Rates, int]],
    decodes: list[tuple[Design, Rates]],
    ruled: Ruled,
) -> tuple[list[Option], int]:
    """Prefill pools with decode pools of the same model, formats and machines: the best of them,
    and how many are possible.
    """
    prompts = [one for one in prompts if one[1].most > 0]
    decodes = [one for one in decodes if one[1].most > 0]
    if not prompts or not decodes:
        return [], 0
    machines = space.machines[prompts[0][0].machines]
    price, sizes, spare = machines.gpu_hour, np.array(machines.sizes), space.spare_gpus(machines)

    def needed(rates: list[float], ranks: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        with np.errstate(divide="ignore"):
            replicas = np.ceil(np.minimum(traffic.rate_per_s / np.array(rates), 1e6)).astype(
                np.int64
            )
        return replicas, replicas * np.array(ranks)

    first = [
        needed([getattr(r, name) for _, r, _ in prompts], [d.num_ranks for d, _, _ in prompts])
        for name in ("likely", "most")
    ]
    second = [
        needed([getattr(r, name) for _, r in decodes], [d.num_ranks for d, _ in decodes])
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
        example = f"{space.text(decodes[d][0])}, prompts on {space.split(prompts[p][0])}: {int(least[p, d]):,} GPUs or more"
        ruled.out(TOO_FEW, example, possible.size - number)
    order = np.lexsort((least[possible], gpus[possible], held[possible]))[:_KEPT]
    hopeful = np.lexsort((gpus[possible], least[possible]))[: _KEPT // 2]
    places = np.argwhere(possible)[np.unique(np.concatenate([order, hopeful]))]
    found = []
    for p, d in places:
        (prefill, p_rates, budget), (decode, d_rates) = prompts[p], decodes[d]
        found.append(
            Option(
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


def _limits(space: Space) -> Limits:
    targets, slo = space.question.targets, space.question.workload.slo
    ttft = [*targets.ttft_s.limits().values()]
    tpot = [*targets.tpot_s.limits().values()]
    if targets.attainment is not None:
        ttft += [slo.ttft_s] if slo.ttft_s else []
        tpot += [slo.tpot_s] if slo.tpot_s else []
    return Limits(min(ttft, default=math.inf), min(tpot, default=math.inf))
