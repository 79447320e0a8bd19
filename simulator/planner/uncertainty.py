"""What the answer hangs on: other circumstances, lost nodes, the calibration's error, chance. All
in one batch, on all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from simulator.base.data import looked_up_once
from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Spare
from simulator.parallel.workers import Workers, hired
from simulator.planner.ahead import explore, tasks
from simulator.planner.confidence import (
    Costs,
    Doubted,
    at_its_size,
    carried,
    confidence,
    noise_of,
    redrawn,
    second_choice,
    table_of,
)
from simulator.planner.crossover import crossover_of
from simulator.planner.draws import Floats, Table
from simulator.planner.estimate import Estimator
from simulator.planner.explore import Finding
from simulator.planner.findings import headroom_of
from simulator.planner.losses import LOST, idle_costs, spare_nodes
from simulator.planner.row_bands import costs_band, estimates, held, losses, rows, stretch_text
from simulator.planner.screen import Option
from simulator.planner.search import Found
from simulator.planner.sensitivity import changes_of, options_of, sensitivity
from simulator.planner.sizes import around
from simulator.planner.store import Store
from simulator.planner.versus import (
    best_of_kind,
    changes_over_rates,
    moe_vs_dense,
    over_rates,
    rivals,
)
from simulator.planner.whatif import Change, Trials


class _Job(NamedTuple):
    """Something to do in a worker."""

    do: Callable[..., Any]
    arguments: tuple[Any, ...]


def doubts(
    found: Found, store: Store, tick: Progress = show_nothing, workers: Workers | int | None = None
) -> dict[str, Any]:
    """``sensitivity``, ``losses``, ``spare_nodes``, ``idle``, ``confidence`` and ``moe_vs_dense``
    of an answer; and ``bands``.

    With these, since they take as long and all cores share them, its ``crossover``, ``sizes`` and
    ``headroom``.

    The bands are keys for the row of every deployment that meets the targets, in the findings'
    order. Empty where none does.
    """
    met = [finding for finding in found.findings if finding.sized is not None]
    if not met:
        return {}
    first = met[0]
    second, moe, dense = (
        second_choice(found),
        best_of_kind(found, "MoE"),
        best_of_kind(found, "dense"),
    )
    doubted = Doubted(first, second, moe, dense, {}, [], [], (1.0, 1.0))
    copying = next((one for one in met if one.option.design.slots), None)
    again = options_of(found)
    changes = {option: tuple(changes_of(found, option)) for option in again}

    def everything_of(option: Option) -> tuple[Option, tuple[Change, ...], bool]:
        return option, changes.get(option, ()), option in doubted.options

    others = [
        option for option in dict.fromkeys([*again, *doubted.options]) if option != first.option
    ]
    jobs: dict[str, _Job] = {}
    rates: list[tuple[Option, Change]] = []
    if moe is not None and dense is not None:
        both = rivals(found, moe), rivals(found, dense)
        rates = changes_over_rates(*both)
        jobs["rates"] = _Job(over_rates, both)
    jobs |= {
        "first": _Job(_first_choice, (first, copying, *everything_of(first.option)[1:])),
        "crossover": _Job(_beside, (crossover_of, found)),
        "samples": _Job(_samples, (first, second)),
        "closed": _Job(estimates, (met, found.traffic.rate_per_s)),
        "headroom": _Job(_beside, (headroom_of, found, first)),
        "sizes": _Job(_beside, (around, found, first)),
    }
    drawn = [one.option for one in (first, second) if one is not None]
    ahead = [] if store.folder is None else tasks(changes, doubted.options, drawn, rates)
    trials = Trials(
        found.question.model_dump_json(),
        str(found.space.folder),
        None if store.folder is None else str(store.folder),
    )
    last = [*jobs.values(), *(_Job(_option, everything_of(option)) for option in others)]
    name, count = "trying what the answer hangs on", len(ahead) + len(last)
    tick(name, 0, count)
    with hired(workers) as crew:
        crew.map(
            partial(explore, trials),
            ahead,
            lambda n: tick(name, n, count),
            group=attrgetter("option"),
            weight=attrgetter("work"),
        )
        done = crew.map(partial(_do, trials), last, lambda n: tick(name, len(ahead) + n, count))
    results = dict(zip(jobs, done, strict=False))
    mine = results["first"]
    closed = dict(zip([finding.option for finding in met], results["closed"], strict=True))
    tried: dict[Option, _Tried] = dict(
        zip([first.option, *others], [mine.pop("option"), *done[len(jobs) :]], strict=True)
    )
    doubted = doubted._replace(
        tables={option: one.table for option, one in tried.items() if one.table is not None},
        redrawn=results["samples"],
        slowed=mine.pop("slowed"),
        room=mine.pop("room"),
    )
    for place, one in enumerate((first, second)):
        if one is not None:
            own = doubted.tables[one.option]
            doubted = doubted._replace(
                tables={**doubted.tables, one.option: own._replace(noise=noise_of(doubted, place))}
            )
    costs = Costs(
        found,
        {option: one.table for option, one in closed.items() if one is not None}
        | dict(doubted.tables),
    )
    bands = rows(found, doubted, costs, closed)
    under = {
        (option, change): finding
        for option, one in tried.items()
        for change, finding in one.findings.items()
    }
    tables = {
        (option, change): table
        for option, one in tried.items()
        for change, table in one.changed.items()
    }
    spare = _with_bands(mine.pop("spare_nodes"), mine.pop("spare"), costs)
    changed = sensitivity(found, under, tables, costs, stretch_text(trials, first.option))
    return {
        "sensitivity": changed,
        **mine,
        **{key: results[key] for key in ("crossover", "headroom", "sizes")},
        "spare_nodes": spare,
        "confidence": confidence(found, doubted, costs),
        "moe_vs_dense": moe_vs_dense(found, results.get("rates"), changed, costs, bands),
        "bands": [bands[finding.option] for finding in met],
    }


class _Tried(NamedTuple):
    """What was found about an option."""

    findings: dict[Change, Finding]
    changed: dict[Change, Table]
    """Under the same changes, in closed form."""
    table: Table | None
    """As asked, simulated; of the options that are compared most closely."""


def _do(trials: Trials, job: _Job) -> Any:
    with looked_up_once():
        return job.do(trials, *job.arguments)


def _beside(trials: Trials, function: Callable[..., Any], *arguments: Any) -> Any:
    """What rests on no other trials, but takes as long."""
    return function(*arguments)


def _option(
    trials: Trials, option: Option, changes: tuple[Change, ...], is_doubted: bool
) -> _Tried:
    """One option under every change, and its table: together, since they share what was filled."""
    findings = {change: trials.find(option, change) for change in changes}
    return _Tried(
        findings, _tables(trials, findings), table_of(trials, option) if is_doubted else None
    )


def _tables(trials: Trials, findings: dict[Change, Finding]) -> dict[Change, Table]:
    found = {
        change: Estimator(trials, change).estimate(finding) for change, finding in findings.items()
    }
    return {change: estimate.table for change, estimate in found.items() if estimate is not None}


def _samples(trials: Trials, first: Finding, second: Finding | None) -> list[dict[str, Any]]:
    if first.sized is None:
        return []
    return redrawn(
        trials, (first.option,) if second is None else (first.option, second.option), first.sized
    )


def _first_choice(
    trials: Trials,
    first: Finding,
    copying: Finding | None,
    changes: tuple[Change, ...],
    is_doubted: bool,
) -> dict[str, Any]:
    """What is asked of the recommended deployment only, and of every one."""
    if first.sized is None:
        return {}
    option, sized = first.option, first.sized
    tried = _option(trials, option, changes, is_doubted)
    table = tried.table or table_of(trials, option)
    changed = [Change(spare=lost) for lost in (Spare(), *LOST)]
    spare = {change: trials.find(option, change) for change in changed}
    tables = _tables(trials, spare)
    return {
        "option": tried._replace(table=table),
        "losses": losses(trials, option, sized, table),
        "spare_nodes": spare_nodes(trials, option),
        "spare": [(finding, tables.get(change)) for change, finding in spare.items()],
        "idle": idle_costs(trials, first, copying),
        "slowed": at_its_size(trials, option, sized, table),
        "room": tuple(carried(trials, option, sized, slower) for slower in table.band),
    }


def _with_bands(
    rows: list[dict[str, Any]], spare: list[tuple[Finding, Table | None]], costs: Costs
) -> list[dict[str, Any]]:
    """Rows of :func:`~simulator.planner.losses.spare_nodes` with bands in closed form."""
    found: list[dict[str, Any]] = []
    base: Floats | None = None
    for row, (finding, table) in zip(rows, spare, strict=True):
        gpus, drawn = (
            (None, None)
            if table is None
            else (costs.gpus(finding, table), costs.of(finding, table))
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
