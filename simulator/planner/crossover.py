"""The crossover map: where a mixture of experts beats a dense model, by how much, and what decides.

Three readings of "better", since they differ: at the same sequences on each GPU, at the same time
per token, and each at its full load. At every point each model has the best of its splits. The
deciding term is the one in which the winner saves most GPU-seconds of an output token; room for the
cache decides where the loser would need it to hold as many sequences as the winner. A ratio's band
and ``moe_wins_probability`` are of the calibration's error alone
(:mod:`~simulator.planner.calibration_error`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simulator.config.capacity import Crossover, Question
from simulator.deployment.plan import make_plan
from simulator.planner.calibration_error import (
    compare_speeds,
    include_one,
    read_bands,
    read_error,
)
from simulator.planner.closed_form import Curve
from simulator.planner.conditions import Conditions, apply_conditions
from simulator.planner.crossover_text import flips
from simulator.planner.ruled_out import Ruled
from simulator.planner.screen import by_cost
from simulator.planner.search import SearchResult
from simulator.planner.space import ReplicaShape, Space
from simulator.planner.steady import Loads, Steady, fixed

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
"""Names of :class:`simulator.planner.closed_form.Terms`, in its order."""
MEMORY = "KV memory"
WEIGHTS = "memory for weights"
"""What a model does not even have."""
BEST, ALIKE = "best of each", "same tensor parallelism"
"""Which splits are compared: each model's best, or replicas without attention data parallelism over
the same number of GPUs."""
_ALIKE = 0.005
"""Models that differ by less in tokens a second are alike."""
_DIGITS = 5


class Point(NamedTuple):
    """What a model does somewhere on the map."""

    steady: Steady
    loads: Loads
    """Of one load."""
    is_full: bool
    """Whether the cache holds no more."""

    @property
    def tokens_per_s(self) -> float:
        """Of a GPU."""
        return float(self.loads.tokens_per_s[0])

    @property
    def sequences(self) -> float:
        """On a GPU."""
        return float(self.loads.sequences[0])


def crossover_of(result: SearchResult) -> dict[str, Any] | None:
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
    ordered = [
        evaluation.candidate.shape
        for evaluation in result.evaluations
        if evaluation.cluster_size is not None
    ]
    ordered += [
        candidate.shape
        for candidate in sorted(
            (o for part in result.screened.values() for o in part.candidates), key=by_cost
        )
    ]
    places = [(shape.model, shape.machines) for shape in ordered] + [
        (n, usable[0]) for n in range(len(space.models))
    ]
    seen = [
        (model, machines) for model, machines in places if space.variants[model].pruning is None
    ]
    kinds = [space.models[model].moe is not None for model, _ in seen]
    if len(set(kinds)) < 2 and result.question.crossover.models is None:
        return None
    best = dict.fromkeys(seen[kinds.index(kind)][0] for kind in (True, False) if kind in kinds)
    return crossover(result.question, space.folder, list(best), seen[0][1])


def crossover(
    question: Question, folder: Path, models: Sequence[int], machines: int
) -> dict[str, Any] | None:
    """The map as JSON; ``None`` where the models are all of one kind.

    Args:
        models: indices into the question's models, unless its ``[crossover]`` names others;
            likewise the machines.
    """
    asked = question.crossover
    if asked.models is not None:
        models = [n for n, one in enumerate(question.models) if one.model in asked.models]
    if asked.cluster is not None:
        machines = [one.cluster for one in question.clusters].index(asked.cluster)
    rows: dict[str, list[dict[str, Any]]] = {"cells": [], "at_same_time": [], "at_full_load": []}
    names: dict[str, list[str]] = {}
    narrow = _narrowed(question, folder, machines)
    shapes: list[list[ReplicaShape]] = []
    for network in asked.networks:
        space = Space(apply_conditions(Conditions(network=network), narrow, folder), folder)
        shapes = shapes or [_shapes(space, model, machines, asked) for model in models]
        sides = [_Side(space, model, plans) for model, plans in zip(models, shapes, strict=True)]
        names = {
            "moe": [side.name for side in sides if side.is_moe],
            "dense": [side.name for side in sides if not side.is_moe],
        }
        if not names["moe"] or not names["dense"]:
            return None
        for num_input, num_output in product(asked.inputs, asked.outputs):
            place = {"input": num_input, "output": num_output, "network": network}
            steady = [side.at(num_input, num_output) for side in sides]
            for moe, dense in product(range(len(sides)), repeat=2):
                if sides[moe].is_moe and not sides[dense].is_moe:
                    here = {"moe": sides[moe].name, "dense": sides[dense].name, **place}
                    for name, found in compared(steady[moe], steady[dense], asked).items():
                        rows[name] += [here | row for row in found]
    answer = {
        "models": names,
        "cluster": question.clusters[machines].cluster,
        "terms": [*TERMS.values(), MEMORY],
        **rows,
    }
    return answer | {"flips": flips(answer)}


def compared(
    moe: list[Steady], dense: list[Steady], asked: Crossover
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the three readings for two models with requests of one length; each is given by its
    splits.
    """
    alike = [
        (size, _of_size(moe, size), _of_size(dense, size))
        for size in sorted({one.plan.placement.layout.num_ranks for one in dense})
    ]
    pairs = [
        (BEST, None, moe, dense),
        *((ALIKE, size, first, second) for size, first, second in alike if first and second),
    ]
    rows: dict[str, list[dict[str, Any]]] = {"cells": [], "at_same_time": [], "at_full_load": []}
    batches = np.array(asked.batches)
    dense_loads = [one.at(batches) for one in dense]
    for ep in asked.eps:
        splits = [one for one in moe if one.shape.ep == ep]
        loads = [one.at(batches) for one in splits]
        for n, batch in enumerate(asked.batches if splits else ()):
            first, second = _best_at(splits, loads, n), _best_at(dense, dense_loads, n)
            missing = _too_many(splits if first is None else dense, batch)
            rows["cells"].append({"batch_per_gpu": batch, "ep": ep} | _row(first, second, missing))
    for pairing, size, firsts, seconds in pairs:
        here = {"pairing": pairing, "gpus": size}
        for time_s in asked.times_s:
            first, second = _most_within(firsts, time_s), _most_within(seconds, time_s)
            missing = _slowest_term(firsts if first is None else seconds)
            rows["at_same_time"].append(
                here | {"time_per_token_s": time_s} | _row(first, second, missing, time_s)
            )
        first, second = _most_within(firsts), _most_within(seconds)
        rows["at_full_load"].append(
            here | _row(first, second, WEIGHTS if not firsts or not seconds else MEMORY)
        )
    return rows


class _Side:
    """One model with its splits on one network."""

    def __init__(self, space: Space, model: int, shapes: list[ReplicaShape]) -> None:
        self.name = space.models[model].name
        self.is_moe = space.models[model].moe is not None
        self._space = space
        self._curves: dict[ReplicaShape, Curve] = {}
        seed = space.question.seed
        self._plans = [
            (shape, make_plan(space.spec(shape, None), seed, "plan [crossover]", space.folder))
            for shape in shapes
        ]

    def at(self, num_input: int, num_output: int) -> list[Steady]:
        """The splits with requests of one length."""
        traffic, budget = (
            fixed(num_input, num_output),
            max(self._space.question.space.token_budgets),
        )
        found = []
        for shape, plan in self._plans:
            key = shape.kernels
            curve = Curve(plan, traffic, budget, self._curves.get(key))
            self._curves.setdefault(key, curve)
            found.append(Steady(shape, self._space.split(shape), curve, traffic, budget))
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


def _narrowed(question: Question, folder: Path, machines: int) -> Question:
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


def _of_size(splits: list[Steady], num_gpus: int) -> list[Steady]:
    """Those without attention data parallelism over so many GPUs."""
    return [one for one in splits if one.shape.attention_dp == 1 and one.shape.tp == num_gpus]


def _best_at(splits: list[Steady], loads: list[Loads], n: int) -> Point | None:
    """The split that makes most of the ``n``-th load."""
    found = [
        Point(one, part.only(n), False)
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
            found.append(Point(one, loads.only(best), best == len(made) - 1))
    return max(found, key=lambda point: point.tokens_per_s, default=None)


def _row(
    moe: Point | None, dense: Point | None, missing: str, time_s: float = math.inf
) -> dict[str, Any]:
    """Two points held against each other.

    Args:
        missing: what keeps a model from the place, where it has no point.
        time_s: that a token may take: slower models have less load then.
    """
    row: dict[str, Any] = {"fits": moe is not None and dense is not None}
    for kind, point in (("moe", moe), ("dense", dense)):
        row[f"{kind}_tokens_per_s_gpu"] = None if point is None else _rounded(point.tokens_per_s)
        requests = 0.0 if point is None else point.tokens_per_s / point.steady.traffic.num_output
        row[f"{kind}_requests_per_s_gpu"] = None if point is None else _rounded(requests)
        row[f"{kind}_sequences_per_gpu"] = None if point is None else _rounded(point.sequences)
        row[f"{kind}_time_per_token_s"] = (
            None if point is None else _rounded(float(point.loads.step_s[0]))
        )
        row[f"{kind}_split"] = None if point is None else point.steady.split
    row |= {"ratio": None, "ratio_low": None, "ratio_high": None, "moe_wins_probability": None}
    row |= {"winner": None, "deciding_term": None, "share": None}
    if moe is None or dense is None:
        winner = moe or dense
        return row | ({} if winner is None else {"winner": _name(winner), "deciding_term": missing})
    ratio = moe.tokens_per_s / dense.tokens_per_s
    row["ratio"] = _rounded(ratio)
    moe_error, dense_error = (
        read_error(one.steady.plan, one.loads.terms[:, 0], one.steady.plan.prefill is not None)
        for one in (moe, dense)
    )
    elasticities = _gives(moe, time_s), _gives(dense, time_s)
    sure = compare_speeds(ratio, moe_error, dense_error, elasticities)
    for name, value in (
        ("ratio_low", sure.low),
        ("ratio_high", sure.high),
        ("moe_wins_probability", sure.above),
    ):
        row[name] = None if value is None else round(_rounded(value), 6)
    if abs(ratio - 1) < _ALIKE:
        return row
    winner, loser = (moe, dense) if ratio > 1 else (dense, moe)
    term, share = deciding(winner, loser)
    return row | {"winner": _name(winner), "deciding_term": term, "share": _rounded(share)}


def _gives(point: Point, time_s: float) -> float:
    """By how many per cent fewer tokens a model makes where its steps take one per cent longer and
    a token may not.
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
        roomy = steady.at(
            np.array(
                [
                    min(
                        winner.sequences,
                        max(loser.sequences, per_rank / steady.plan.placement.layout.tp),
                    )
                ]
            )
        ).terms[:, 0]
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
    """What keeps the fastest split from being faster."""
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


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
