"""What the answer hangs on: other circumstances, lost nodes, the calibration's error, chance. All in one batch, on all cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from simulator.planner.answer import best_of_each
from simulator.planner.confidence import Doubted, at_its_size, carried, confidence, redrawn, second_choice, table_of
from simulator.planner.explore import Finding
from simulator.planner.losses import idle_costs, spare_nodes, with_losses
from simulator.planner.screen import Option
from simulator.planner.search import Found, Tick
from simulator.planner.sensitivity import changes_of, options_of, sensitivity
from simulator.planner.store import Store
from simulator.planner.versus import best_of_kind, moe_vs_dense, over_rates, rivals
from simulator.planner.whatif import Change, Trials
from simulator.sweep import sweep


class _Job(NamedTuple):
    """Something to do in a worker."""

    do: Callable[..., Any]
    arguments: tuple[Any, ...]


def doubts(found: Found, store: Store, tick: Tick = lambda *_: None, workers: int | None = None) -> dict[str, Any]:
    """``sensitivity``, ``losses``, ``spare_nodes``, ``idle``, ``confidence`` and ``moe_vs_dense`` of an answer.

    Empty where nothing meets the targets.
    """
    met = list(best_of_each(found).values())
    if not met:
        return {}
    first = next(finding for finding in found.findings if finding.sized is not None)
    second, moe, dense = second_choice(found), best_of_kind(found, "MoE"), best_of_kind(found, "dense")
    doubted = Doubted(first, second, moe, dense, {}, [], [], (1.0, 1.0))
    copying = next((one for one in found.findings if one.sized is not None and one.option.design.slots), None)
    again = options_of(found)

    def everything_of(option: Option) -> tuple[Option, tuple[Change, ...], bool]:
        return option, tuple(changes_of(found, option)) if option in again else (), option in doubted.options

    jobs = [_Job(_first_choice, (first, copying, *everything_of(first.option)[1:])), _Job(_samples, (first, second))]
    others = [option for option in dict.fromkeys([*again, *doubted.options]) if option != first.option]
    jobs += [_Job(_option, everything_of(option)) for option in others]
    if moe is not None and dense is not None:
        jobs.insert(0, _Job(over_rates, (rivals(found, moe), rivals(found, dense))))
    trials = Trials(found.question.model_dump_json(), str(found.space.folder), None if store.folder is None else str(store.folder))
    name = "trying what the answer hangs on"
    tick(name, 0, len(jobs))
    done = sweep(partial(_do, trials), jobs, lambda n: tick(name, n, len(jobs)), workers)
    rates = done.pop(0) if len(jobs) > 2 + len(others) else None
    mine, redraws, *rest = done
    tables: dict[Option, Any] = {}
    results: dict[tuple[Option, Change], Finding] = {}
    for option, (findings, table) in zip([first.option, *others], [mine.pop("option"), *rest], strict=True):
        results |= {(option, change): finding for change, finding in findings.items()}
        tables[option] = table
    doubted = doubted._replace(tables=tables, redrawn=redraws, slowed=mine.pop("slowed"), room=mine.pop("room"))
    changed = sensitivity(found, results)
    return {
        "sensitivity": changed,
        **mine,
        "confidence": confidence(found, doubted),
        "moe_vs_dense": moe_vs_dense(found, rates, changed),
    }


def _do(trials: Trials, job: _Job) -> Any:
    return job.do(trials, *job.arguments)


def _option(trials: Trials, option: Option, changes: tuple[Change, ...], is_doubted: bool) -> tuple[dict[Change, Finding], Any]:
    """One option under every change, and its table: together, since they share what was filled."""
    return {change: trials.find(option, change) for change in changes}, table_of(trials, option) if is_doubted else None


def _samples(trials: Trials, first: Finding, second: Finding | None) -> list[dict[str, Any]]:
    if first.sized is None:
        return []
    return redrawn(trials, (first.option,) if second is None else (first.option, second.option), first.sized)


def _first_choice(
    trials: Trials, first: Finding, copying: Finding | None, changes: tuple[Change, ...], is_doubted: bool
) -> dict[str, Any]:
    """What is asked of the recommended deployment only, and of every one."""
    if first.sized is None:
        return {}
    option, sized = first.option, first.sized
    findings, table = _option(trials, option, changes, is_doubted)
    return {
        "option": (findings, table),
        "losses": with_losses(trials, option, sized),
        "spare_nodes": spare_nodes(trials, option),
        "idle": idle_costs(trials, first, copying),
        "slowed": at_its_size(trials, option, sized, table),
        "room": tuple(carried(trials, option, sized, slower) for slower in table.band),
    }
