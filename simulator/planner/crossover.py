"""The crossover map: where a mixture of experts beats a dense model, by how much, and what decides.

Three readings of "better", since they differ: at the same sequences on each GPU, at the same time
per token, and each at its full load. At every point each model has the best of its splits. The
deciding term is the one in which the winner saves most GPU-seconds of an output token; room for the
cache decides where the loser would need it to hold as many sequences as the winner. A ratio's band
and ``moe_wins_probability`` are of the calibration's error alone
(:mod:`simulator.planner.calibration_error`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from simulator.config.capacity import Crossover, Question
from simulator.config.pairing import model_text
from simulator.deployment.plan import make_plan
from simulator.planner.closed_form import Curve
from simulator.planner.conditions import Conditions, apply_conditions
from simulator.planner.map_points import MEMORY, TERMS, Place, Readings, compare_models
from simulator.planner.ruled_out import Ruled
from simulator.planner.screen import by_cost
from simulator.planner.search import SearchResult
from simulator.planner.shapes import ReplicaShape
from simulator.planner.space import Space
from simulator.planner.steady import Steady, make_fixed_traffic
from simulator.results.answer.crossover import CrossoverMap, MapModels
from simulator.results.plan_sentences.crossover import describe_flips


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
    found = Readings([], [], [])
    names = MapModels(moe=(), dense=())
    narrow = _narrow(question, folder, machines)
    shapes: list[list[ReplicaShape]] = []
    for network in asked.networks:
        space = Space(apply_conditions(Conditions(network=network), narrow, folder), folder)
        shapes = shapes or [_shapes(space, model, machines, asked) for model in models]
        sides = [_Side(space, model, plans) for model, plans in zip(models, shapes, strict=True)]
        names = MapModels(
            moe=tuple(side.name for side in sides if side.is_moe),
            dense=tuple(side.name for side in sides if not side.is_moe),
        )
        if not names.moe or not names.dense:
            return None
        for num_input, num_output in product(asked.inputs, asked.outputs):
            steady = [(side, side.find_steady(num_input, num_output)) for side in sides]
            for (moe, first), (dense, second) in product(steady, repeat=2):
                if moe.is_moe and not dense.is_moe:
                    place = Place(moe.name, dense.name, num_input, num_output, network)
                    here = compare_models(first, second, asked, place)
                    found.cells.extend(here.cells)
                    found.at_same_time.extend(here.at_same_time)
                    found.at_full_load.extend(here.at_full_load)
    answer = CrossoverMap(
        models=names,
        cluster=question.clusters[machines].cluster,
        terms=(*TERMS.values(), MEMORY),
        cells=tuple(found.cells),
        at_same_time=tuple(found.at_same_time),
        at_full_load=tuple(found.at_full_load),
    )
    return answer.model_copy(update={"flips": describe_flips(answer)})


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

    def find_steady(self, num_input: int, num_output: int) -> list[Steady]:
        """The splits with requests of one length."""
        traffic, budget = (
            make_fixed_traffic(num_input, num_output),
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
