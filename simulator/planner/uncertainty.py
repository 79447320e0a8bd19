"""What the answer hangs on: other circumstances, lost nodes, the calibration's error, chance. All
in one batch, on all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from simulator.base.data import cache_lookups
from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Spare
from simulator.parallel.workers import Workers, use_workers
from simulator.planner.confidence import (
    ComparedChoices,
    Costs,
    at_its_size,
    carried,
    confidence,
    noise_of,
    redrawn,
    second_choice,
    table_of,
)
from simulator.planner.crossover import crossover_of
from simulator.planner.estimate import Estimator
from simulator.planner.evaluations import headroom_of
from simulator.planner.explore import Evaluation
from simulator.planner.losses import LOST, idle_costs, spare_nodes
from simulator.planner.moe_vs_dense import (
    best_of_kind,
    changes_over_rates,
    moe_vs_dense,
    over_rates,
    rivals,
)
from simulator.planner.prefetch import explore, tasks
from simulator.planner.row_bands import costs_band, estimates, held, losses, rows, stretch_text
from simulator.planner.samples import Floats, Table
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult
from simulator.planner.sensitivity import candidates_of, changes_of, sensitivity
from simulator.planner.sizes import around
from simulator.planner.store import Store
from simulator.planner.whatif import Change, Trials


class _Job(NamedTuple):
    """Something to do in a worker."""

    do: Callable[..., Any]
    arguments: tuple[Any, ...]


def doubts(
    result: SearchResult,
    store: Store,
    tick: Progress = show_nothing,
    workers: Workers | int | None = None,
) -> dict[str, Any]:
    """``sensitivity``, ``losses``, ``spare_nodes``, ``idle``, ``confidence`` and ``moe_vs_dense``
    of an answer; and ``bands``.

    With these, since they take as long and all cores share them, its ``crossover``, ``sizes`` and
    ``headroom``.

    The bands are keys for the row of every deployment that meets the targets, in the evaluations'
    order. Empty where none does.
    """
    met = [evaluation for evaluation in result.evaluations if evaluation.cluster_size is not None]
    if not met:
        return {}
    first = met[0]
    second, moe, dense = (
        second_choice(result),
        best_of_kind(result, "MoE"),
        best_of_kind(result, "dense"),
    )
    choices = ComparedChoices(first, second, moe, dense, {}, [], [], (1.0, 1.0))
    copying = next((one for one in met if one.candidate.shape.slots), None)
    again = candidates_of(result)
    changes = {candidate: tuple(changes_of(result, candidate)) for candidate in again}

    def everything_of(candidate: Candidate) -> tuple[Candidate, tuple[Change, ...], bool]:
        return candidate, changes.get(candidate, ()), candidate in choices.candidates

    others = [
        candidate
        for candidate in dict.fromkeys([*again, *choices.candidates])
        if candidate != first.candidate
    ]
    jobs: dict[str, _Job] = {}
    rates: list[tuple[Candidate, Change]] = []
    if moe is not None and dense is not None:
        both = rivals(result, moe), rivals(result, dense)
        rates = changes_over_rates(*both)
        jobs["rates"] = _Job(over_rates, both)
    jobs |= {
        "first": _Job(_first_choice, (first, copying, *everything_of(first.candidate)[1:])),
        "crossover": _Job(_beside, (crossover_of, result)),
        "samples": _Job(_samples, (first, second)),
        "closed": _Job(estimates, (met, result.traffic.rate_per_s)),
        "headroom": _Job(_beside, (headroom_of, result, first)),
        "sizes": _Job(_beside, (around, result, first)),
    }
    drawn = [one.candidate for one in (first, second) if one is not None]
    ahead = [] if store.folder is None else tasks(changes, choices.candidates, drawn, rates)
    trials = Trials(
        result.question.model_dump_json(),
        str(result.space.folder),
        None if store.folder is None else str(store.folder),
    )
    last = [*jobs.values(), *(_Job(_candidate, everything_of(candidate)) for candidate in others)]
    name, count = "trying what the answer hangs on", len(ahead) + len(last)
    tick(name, 0, count)
    with use_workers(workers) as pool:
        pool.map(
            partial(explore, trials),
            ahead,
            lambda n: tick(name, n, count),
            group=attrgetter("candidate"),
            weight=attrgetter("work"),
        )
        done = pool.map(partial(_do, trials), last, lambda n: tick(name, len(ahead) + n, count))
    results = dict(zip(jobs, done, strict=False))
    mine = results["first"]
    closed = dict(zip([evaluation.candidate for evaluation in met], results["closed"], strict=True))
    tried: dict[Candidate, _Tried] = dict(
        zip([first.candidate, *others], [mine.pop("candidate"), *done[len(jobs) :]], strict=True)
    )
    choices = choices._replace(
        tables={candidate: one.table for candidate, one in tried.items() if one.table is not None},
        redrawn=results["samples"],
        slowed=mine.pop("slowed"),
        room=mine.pop("room"),
    )
    for place, one in enumerate((first, second)):
        if one is not None:
            own = choices.tables[one.candidate]
            choices = choices._replace(
                tables={
                    **choices.tables,
                    one.candidate: own._replace(noise=noise_of(choices, place)),
                }
            )
    costs = Costs(
        result,
        {candidate: one.table for candidate, one in closed.items() if one is not None}
        | dict(choices.tables),
    )
    bands = rows(result, choices, costs, closed)
    under = {
        (candidate, change): evaluation
        for candidate, one in tried.items()
        for change, evaluation in one.evaluations.items()
    }
    tables = {
        (candidate, change): table
        for candidate, one in tried.items()
        for change, table in one.changed.items()
    }
    spare = _with_bands(mine.pop("spare_nodes"), mine.pop("spare"), costs)
    changed = sensitivity(result, under, tables, costs, stretch_text(trials, first.candidate))
    return {
        "sensitivity": changed,
        **mine,
        **{key: results[key] for key in ("crossover", "headroom", "sizes")},
        "spare_nodes": spare,
        "confidence": confidence(result, choices, costs),
        "moe_vs_dense": moe_vs_dense(result, results.get("rates"), changed, costs, bands),
        "bands": [bands[evaluation.candidate] for evaluation in met],
    }


class _Tried(NamedTuple):
    """What was found about a candidate."""

    evaluations: dict[Change, Evaluation]
    changed: dict[Change, Table]
    """Under the same changes, in closed form."""
    table: Table | None
    """As asked, simulated; of the candidates that are compared most closely."""


def _do(trials: Trials, job: _Job) -> Any:
    with cache_lookups():
        return job.do(trials, *job.arguments)


def _beside(trials: Trials, function: Callable[..., Any], *arguments: Any) -> Any:
    """What rests on no other trials, but takes as long."""
    return function(*arguments)


def _candidate(
    trials: Trials, candidate: Candidate, changes: tuple[Change, ...], is_doubted: bool
) -> _Tried:
    """One candidate under every change, and its table: together, as they share what was filled."""
    evaluations = {change: trials.find(candidate, change) for change in changes}
    return _Tried(
        evaluations,
        _tables(trials, evaluations),
        table_of(trials, candidate) if is_doubted else None,
    )


def _tables(trials: Trials, evaluations: dict[Change, Evaluation]) -> dict[Change, Table]:
    found = {
        change: Estimator(trials, change).estimate(evaluation)
        for change, evaluation in evaluations.items()
    }
    return {change: estimate.table for change, estimate in found.items() if estimate is not None}


def _samples(trials: Trials, first: Evaluation, second: Evaluation | None) -> list[dict[str, Any]]:
    if first.cluster_size is None:
        return []
    return redrawn(
        trials,
        (first.candidate,) if second is None else (first.candidate, second.candidate),
        first.cluster_size,
    )


def _first_choice(
    trials: Trials,
    first: Evaluation,
    copying: Evaluation | None,
    changes: tuple[Change, ...],
    is_doubted: bool,
) -> dict[str, Any]:
    """What is asked of the recommended deployment only, and of every one."""
    if first.cluster_size is None:
        return {}
    candidate, cluster_size = first.candidate, first.cluster_size
    tried = _candidate(trials, candidate, changes, is_doubted)
    table = tried.table or table_of(trials, candidate)
    changed = [Change(spare=lost) for lost in (Spare(), *LOST)]
    spare = {change: trials.find(candidate, change) for change in changed}
    tables = _tables(trials, spare)
    return {
        "candidate": tried._replace(table=table),
        "losses": losses(trials, candidate, cluster_size, table),
        "spare_nodes": spare_nodes(trials, candidate),
        "spare": [(evaluation, tables.get(change)) for change, evaluation in spare.items()],
        "idle": idle_costs(trials, first, copying),
        "slowed": at_its_size(trials, candidate, cluster_size, table),
        "room": tuple(carried(trials, candidate, cluster_size, slower) for slower in table.band),
    }


def _with_bands(
    rows: list[dict[str, Any]], spare: list[tuple[Evaluation, Table | None]], costs: Costs
) -> list[dict[str, Any]]:
    """Rows of :func:`~simulator.planner.losses.spare_nodes` with bands in closed form."""
    found: list[dict[str, Any]] = []
    base: Floats | None = None
    for row, (evaluation, table) in zip(rows, spare, strict=True):
        gpus, drawn = (
            (None, None)
            if table is None
            else (costs.gpus(evaluation, table), costs.of(evaluation, table))
        )
        base = base if found else drawn
        both = None if drawn is None or base is None else np.isfinite(drawn) & np.isfinite(base)
        extra = None if both is None or drawn is None or base is None else drawn[both] - base[both]
        found.append(
            row
            | held("gpus", row["gpus"], costs_band(gpus))
            | held("cost_per_hour", row["cost_per_hour"] or None, costs_band(drawn))
            | held("extra_cost_per_hour", row["extra_cost_per_hour"] or None, costs_band(extra))
        )
    return found
