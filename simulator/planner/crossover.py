"""The crossover map: where a mixture of experts beats a dense model, and what decides.

A replica is looked at in the steady state, whatever the targets: sequences leave as fast as others
come. Only the KV cache and the tokens that fit in a step limit how many it holds: an engine's limit
on sequences is a setting, which one would raise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.capacity import Crossover, Question
from simulator.config.pairing import model_text
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.analytical import Curve, Floats
from simulator.planner.calibration_error import compare_speeds, include_one, read_bands, read_error
from simulator.planner.conditions import Change, apply_conditions
from simulator.planner.screen import by_cost
from simulator.planner.search import SearchResult
from simulator.planner.space import ReplicaShape, Ruled, Space
from simulator.planner.traffic import Traffic
from simulator.results.answer.crossover import (
    CrossoverMap,
    FullPoint,
    LoadPoint,
    MapModels,
    MapPoint,
    SpeedPoint,
)
from simulator.results.crossover_text import describe_flips
from simulator.workload.traces import RequestTrace

_FULL = 0.95
"""Share of the cache's blocks and of a step's tokens that is used in the mean where requests do not
come evenly."""
_POINTS = 48
"""Loads on a replica's curve: neighbours differ by some 10 %."""
_LEAST = 0.25
"""Sequences on a GPU at the least load."""


class Loads(NamedTuple):
    """A replica under several loads; ``[n]`` each."""

    sequences: Floats
    """Sequences on a GPU."""
    step_s: Floats
    """Seconds a token of one user, prompts of others included."""
    tokens_per_s: Floats
    """Output tokens a second of a GPU."""
    terms: Floats
    """``[8, n]`` GPU-seconds of an output token, by
    :class:`~simulator.planner.analytical.Terms`."""
    fits: NDArray[np.bool_]
    """Whether the cache holds them and a step can take their tokens."""

    def select(self, n: int) -> Loads:
        """The ``n``-th load."""
        return Loads._make(values[..., n : n + 1] for values in self)


@dataclass(frozen=True)
class Steady:
    """One shape with requests of one length."""

    shape: ReplicaShape
    split: str
    """The split in words."""
    curve: Curve
    traffic: Traffic
    budget: int
    """Tokens of a step on a data-parallel rank."""

    @property
    def plan(self) -> DeploymentPlan:
        """Plan of one replica."""
        return self.curve.plan

    @cached_property
    def most(self) -> float:
        """Sequences on a GPU for which the cache has room; 0 where the model's context is too short
        for one.
        """
        traffic, plan = self.traffic, self.plan
        longest = round(traffic.num_input + traffic.num_output)
        capacity, context = plan.serving.capacity, plan.placement.model.max_context_tokens
        if context is not None and longest > context:
            return 0.0
        outputs = traffic.num_output / 2
        if plan.serving.rules.reserves_output:
            limits = traffic.trace.attributes.get("max_tokens", traffic.trace.num_output)
            outputs = float(np.mean(limits[traffic.lead :]))
        held = min(capacity.blocks_for(round(traffic.num_input + outputs)), capacity.num_blocks)
        if capacity.blocks_for(longest) > capacity.num_blocks:
            return 0.0
        return max(1.0, capacity.num_blocks * _FULL / held) / plan.placement.layout.tp

    @cached_property
    def curve_points(self) -> Loads:
        """Loads from few sequences to as many as the cache holds."""
        if not self.most:
            return self.load(np.zeros(0))
        return self.load(np.geomspace(min(_LEAST, self.most / 2), self.most, _POINTS))

    def load(self, sequences: Floats) -> Loads:
        """Loads with so many sequences on each GPU."""
        layout = self.plan.placement.layout
        ranks = sequences * layout.tp
        terms, busy = self.curve.steady_terms(ranks, self.budget)
        step_s = terms.total
        kept = self.plan.placement.drafts.mean_kept
        made = np.maximum(ranks * layout.attention_dp * kept, 1e-9)
        per_token = np.array(terms) * layout.num_ranks / made
        fits = (busy <= _FULL) & (sequences <= self.most * (1 + 1e-9))
        return Loads(sequences, step_s, made / layout.num_ranks / step_s, per_token, fits)


def make_fixed_traffic(num_input: int, num_output: int) -> Traffic:
    """Requests that are all alike."""
    alike = np.full(2, num_input, dtype=np.int64), np.full(2, num_output, dtype=np.int64)
    return Traffic.measure(RequestTrace(np.arange(2.0), *alike, provenance="all alike"))


TERMS: dict[str, str] = {
    "weights": "weight streaming",
    "products": "compute",
    "cache": "KV reading",
    "prompts": "prompt attention",
    "waiting": "imbalance",
    "exchanges": "all-to-all",
    "all_reduces": "all-reduce",
    "host": "host overhead",
}
"""Names of :class:`simulator.planner.analytical.Terms`, in its order."""
MEMORY = "KV memory"
WEIGHTS = "memory for weights"
"""Room that a model lacks which does not even load."""
BEST, ALIKE = "best of each", "same tensor parallelism"
"""Splits that are compared: each model's best, or replicas without attention data parallelism over
the same number of GPUs."""
_ALIKE = 0.005
"""Models that differ by less in tokens a second are alike."""
_DIGITS = 5
"""Digits of the map's numbers: more than any model's error leaves sure."""


class Place(NamedTuple):
    """Two models, the requests and the network of some points of the map."""

    moe: str
    """Name of the mixture of experts."""
    dense: str
    """Name of the dense model."""
    input: int
    """Prompt tokens of a request."""
    output: int
    """Output tokens of a request."""
    network: float
    """Factor on the network's speed."""


class Point(NamedTuple):
    """A model at one point of the map."""

    steady: Steady
    loads: Loads
    """Figures of one load."""
    is_full: bool
    """Whether the cache holds no more."""

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of one GPU."""
        return float(self.loads.tokens_per_s[0])

    @property
    def sequences(self) -> float:
        """Sequences decoding on one GPU."""
        return float(self.loads.sequences[0])


def compare_models(
    moe: list[Steady], dense: list[Steady], asked: Crossover, place: Place
) -> Iterator[MapPoint]:
    """Compare two models, each given by its splits, with requests of one length: at the same load,
    at the same time per token, and each at its full load.
    """
    alike = [
        (size, _select_size(moe, size), _select_size(dense, size))
        for size in sorted({one.plan.placement.layout.num_ranks for one in dense})
    ]
    pairs = [
        (BEST, None, moe, dense),
        *((ALIKE, size, first, second) for size, first, second in alike if first and second),
    ]
    batches = np.array(asked.batches)
    dense_loads = [one.load(batches) for one in dense]
    for ep in asked.eps:
        splits = [one for one in moe if one.shape.ep == ep]
        loads = [one.load(batches) for one in splits]
        for n, batch in enumerate(asked.batches if splits else ()):
            first, second = _best_at(splits, loads, n), _best_at(dense, dense_loads, n)
            missing = _too_many(splits if first is None else dense, batch)
            keys: dict[str, object] = {"batch_per_gpu": batch, "ep": ep}
            yield _compare(LoadPoint, place, keys, first, second, missing)
    for pairing, size, firsts, seconds in pairs:
        keys = {"pairing": pairing, "gpus": size}
        for time_s in asked.times_s:
            first, second = _most_within(firsts, time_s), _most_within(seconds, time_s)
            missing = _slowest_term(firsts if first is None else seconds)
            timed = {**keys, "time_per_token_s": time_s}
            yield _compare(SpeedPoint, place, timed, first, second, missing, time_s)
        first, second = _most_within(firsts), _most_within(seconds)
        missing = MEMORY if firsts and seconds else WEIGHTS
        yield _compare(FullPoint, place, keys, first, second, missing)


def _select_size(splits: list[Steady], num_gpus: int) -> list[Steady]:
    """The splits without attention data parallelism over so many GPUs."""
    return [one for one in splits if one.shape.attention_dp == 1 and one.shape.tp == num_gpus]


def _best_at(splits: list[Steady], loads: list[Loads], n: int) -> Point | None:
    """The split that makes most of the ``n``-th load."""
    found = [
        Point(one, part.select(n), False)
        for one, part in zip(splits, loads, strict=True)
        if part.fits[n]
    ]
    return max(found, key=lambda point: point.tokens_per_s, default=None)


def _most_within(splits: list[Steady], time_s: float = math.inf) -> Point | None:
    """The split and load that make most tokens, each of them within ``time_s``."""
    found = []
    for one in splits:
        loads = one.curve_points
        made = np.where(loads.fits & (loads.step_s <= time_s), loads.tokens_per_s, 0.0)
        if made.any():
            best = int(made.argmax())
            found.append(Point(one, loads.select(best), best == len(made) - 1))
    return max(found, key=lambda point: point.tokens_per_s, default=None)


def _compare(
    reading: type[MapPoint],
    place: Place,
    keys: Mapping[str, object],
    moe: Point | None,
    dense: Point | None,
    missing: str,
    time_s: float = math.inf,
) -> MapPoint:
    """Two models against each other at one point of the map.

    Args:
        keys: fields that only this reading has.
        missing: what keeps a model from the place, where it has no point.
        time_s: seconds that a token may take: slower models have less load then.
    """
    row: dict[str, object] = {**place._asdict(), **keys, "fits": None not in (moe, dense)}
    for kind, point in (("moe", moe), ("dense", dense)):
        if point is not None:
            row |= _describe_side(kind, point)
    if moe is not None and dense is not None:
        row |= _decide(moe, dense, time_s)
    elif (winner := moe or dense) is not None:
        row |= {"winner": _name(winner), "deciding_term": missing}
    return reading.model_validate(row)


def _describe_side(kind: str, point: Point) -> dict[str, object]:
    """The fields of one model."""
    made = point.tokens_per_s
    return {
        f"{kind}_tokens_per_s_gpu": _round_ratio(made),
        f"{kind}_requests_per_s_gpu": _round_ratio(made / point.steady.traffic.num_output),
        f"{kind}_sequences_per_gpu": _round_ratio(point.sequences),
        f"{kind}_time_per_token_s": _round_ratio(float(point.loads.step_s[0])),
        f"{kind}_split": point.steady.split,
    }


def _decide(moe: Point, dense: Point, time_s: float) -> dict[str, object]:
    """The ratio with its band, the winner, and what decides."""
    ratio = moe.tokens_per_s / dense.tokens_per_s
    moe_error, dense_error = (
        read_error(one.steady.plan, one.loads.terms[:, 0], one.steady.plan.prefill is not None)
        for one in (moe, dense)
    )
    elasticities = _find_elasticity(moe, time_s), _find_elasticity(dense, time_s)
    sure = compare_speeds(ratio, moe_error, dense_error, elasticities)
    row: dict[str, object] = {
        name: None if value is None else round(_round_ratio(value), 6)
        for name, value in (
            ("ratio_low", sure.low),
            ("ratio_high", sure.high),
            ("moe_wins_probability", sure.above),
        )
    }
    row["ratio"] = _round_ratio(ratio)
    if abs(ratio - 1) < _ALIKE:
        return row
    winner, loser = (moe, dense) if ratio > 1 else (dense, moe)
    term, share = deciding(winner, loser)
    return row | {"winner": _name(winner), "deciding_term": term, "share": _round_ratio(share)}


def _find_elasticity(point: Point, time_s: float) -> float:
    """Per cent fewer tokens that a model makes where its steps take one per cent longer and a token
    may not.
    """
    if math.isinf(time_s):
        return 1.0
    edges = include_one(read_bands(point.steady.plan, False).token)
    faster, slower = (_most_within([point.steady], time_s / edge) for edge in edges)
    if faster is None or slower is None:
        return math.inf
    return 1.0 + math.log(faster.tokens_per_s / slower.tokens_per_s) / math.log(edges[1] / edges[0])


def deciding(winner: Point, loser: Point) -> tuple[str, float]:
    """The term in which the winner saves most, and its share of all that it saves somewhere (it may
    lose some of it elsewhere).
    """
    spent, own = loser.loads.terms[:, 0], winner.loads.terms[:, 0]
    saved = {}
    steady = loser.steady
    if loser.is_full and winner.sequences > loser.sequences:
        # What it would spend if it could hold as many: the rest is for want of room.
        per_rank = steady.budget / (1 + steady.traffic.num_input / steady.traffic.num_output)
        most = max(loser.sequences, per_rank / steady.plan.placement.layout.tp)
        roomy = steady.load(np.array([min(winner.sequences, most)])).terms[:, 0]
        saved[MEMORY] = float(spent.sum() - roomy.sum())
        spent = roomy
    saved |= {
        name: float(more - less)
        for name, more, less in zip(TERMS.values(), spent, own, strict=True)
    }
    term = max(saved, key=saved.__getitem__)
    return term, saved[term] / sum(value for value in saved.values() if value > 0)


def _too_many(splits: list[Steady], batch: float) -> str:
    """Why no split takes so many sequences on a GPU."""
    if not splits:
        return WEIGHTS
    if all(one.most == 0 for one in splits):
        return "context length"
    return MEMORY if all(one.most < batch for one in splits) else "tokens of a step"


def _slowest_term(splits: list[Steady]) -> str:
    """The term that keeps the fastest split from being faster."""
    found = [
        (float(one.curve_points.step_s[0]), one.curve_points.terms[:, 0])
        for one in splits
        if one.most
    ]
    if not splits:
        return WEIGHTS
    if not found:
        return "context length"
    return list(TERMS.values())[int(np.argmax(min(found, key=lambda pair: pair[0])[1]))]


def _name(point: Point) -> str:
    return point.steady.plan.placement.model.name


def _round_ratio(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def map_crossover(result: SearchResult) -> CrossoverMap | None:
    """The map of a plan: its best MoE and its best dense model, on the machines of the best;
    ``None`` where the limits allow none.
    """
    space, asked = result.space, result.question.crossover.cluster
    usable = [
        n
        for n, machines in enumerate(space.machines)
        if not machines.beyond and asked in (None, machines.offer.cluster)
    ]
    if not usable:
        return None
    screened = [one for part in result.screened.values() for one in part.candidates]
    ordered = [one.candidate.shape for one in result.met]
    ordered += [one.shape for one in sorted(screened, key=by_cost)]
    places = [(shape.model, shape.machines) for shape in ordered] + [
        (n, usable[0]) for n in range(len(space.models))
    ]
    seen = [
        (space.variants[model].number, machines)
        for model, machines in places
        if space.variants[model].pruning is None
    ]
    kinds = [space.models[model].moe is not None for model, _ in seen]
    if len(set(kinds)) < 2 and result.question.crossover.models is None:
        return None
    best = dict.fromkeys(seen[kinds.index(kind)][0] for kind in (True, False) if kind in kinds)
    return crossover(result.question, space.folder, list(best), seen[0][1])


def crossover(
    question: Question, folder: Path, models: Sequence[int], machines: int
) -> CrossoverMap | None:
    """The map; ``None`` where the models are all of one kind.

    Args:
        models: indices into the question's models, unless its ``[crossover]`` names others.
        machines: index into the question's clusters, unless its ``[crossover]`` names another.
    """
    asked = question.crossover
    if asked.models is not None:
        models = [n for n, one in enumerate(question.models) if model_text(one) in asked.models]
    if asked.cluster is not None:
        machines = [one.cluster for one in question.clusters].index(asked.cluster)
    narrow = _narrow(question, folder, machines)
    known = Space(narrow, folder)
    moes = [n for n in models if known.models[n].moe is not None]
    denses = [n for n in models if known.models[n].moe is None]
    if not moes or not denses:
        return None
    shapes = {model: _shapes(known, model, machines, asked) for model in models}
    points: list[MapPoint] = []
    for network in asked.networks:
        space = Space(apply_conditions(Change(network=network), narrow, folder), folder)
        plans = {n: [(one, space.plan(one)) for one in own] for n, own in shapes.items()}
        curves: dict[ReplicaShape, Curve] = {}
        for num_input, num_output in product(asked.inputs, asked.outputs):
            traffic = make_fixed_traffic(num_input, num_output)
            steady = {n: _list_steady(space, own, traffic, curves) for n, own in plans.items()}
            for moe, dense in product(moes, denses):
                names = space.models[moe].name, space.models[dense].name
                place = Place(*names, num_input, num_output, network)
                points += compare_models(steady[moe], steady[dense], asked, place)
    answer = CrossoverMap(
        models=MapModels(
            moe=tuple(known.models[n].name for n in moes),
            dense=tuple(known.models[n].name for n in denses),
        ),
        cluster=question.clusters[machines].cluster,
        terms=(*TERMS.values(), MEMORY),
        cells=tuple(one for one in points if isinstance(one, LoadPoint)),
        at_same_time=tuple(one for one in points if isinstance(one, SpeedPoint)),
        at_full_load=tuple(one for one in points if isinstance(one, FullPoint)),
    )
    return answer.model_copy(update={"flips": tuple(map(str, describe_flips(answer)))})


def _list_steady(
    space: Space,
    plans: Sequence[tuple[ReplicaShape, DeploymentPlan]],
    traffic: Traffic,
    curves: dict[ReplicaShape, Curve],
) -> list[Steady]:
    """A model's splits with requests of one length.

    Args:
        curves: with requests of any length, by kernels; added to.
    """
    budget, found = max(space.question.space.token_budgets), []
    for shape, plan in plans:
        curve = Curve(plan, traffic, budget, curves.get(shape.kernels))
        curves.setdefault(shape.kernels, curve)
        found.append(Steady(shape, space.split(shape), curve, traffic, budget))
    return found


def _shapes(space: Space, model: int, machines: int, asked: Crossover) -> list[ReplicaShape]:
    """A model's possible splits, the same on every network."""
    per_node = space.machines[machines].spec.gpus_per_node
    is_moe = space.models[model].moe is not None
    return [
        shape
        for shape, _ in space.shapes(model, machines, Ruled())
        if (shape.ep > 1 or shape.num_ranks <= per_node) and (shape.ep in asked.eps or not is_moe)
    ]


def _narrow(question: Question, folder: Path, machines: int) -> Question:
    """The question without what the map does not cover."""
    per_node = Space(question, folder).machines[machines].spec.gpus_per_node
    most = min(question.space.max_gpus_per_replica, max(per_node, *question.crossover.eps))
    space = question.space.model_copy(
        update={
            "redundant_experts": (0.0,),
            "placements": ("contiguous",),
            "pp": (1,),
            "max_gpus_per_replica": most,
        }
    )
    return question.model_copy(update={"space": space})
