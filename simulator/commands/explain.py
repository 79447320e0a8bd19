"""``moesim run --explain``: where the time of a run's tokens goes, and which changes would help,
each found by simulating it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from simulator.base.errors import UserError
from simulator.base.progress import Progress, count_part
from simulator.base.text import one_line
from simulator.commands.deployments import prepare_run
from simulator.config.engine import find_offering
from simulator.deployment.notes import start_notes
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import Fidelity
from simulator.explanation.changes import Change, find_bound, is_worth_trying, list_changes
from simulator.explanation.trials import Trial, find_band, measure_gain
from simulator.explanation.waterfall import make_waterfalls, measure_queue
from simulator.parallel.workers import Workers
from simulator.planner.calibration_error import Floats
from simulator.results.explained import LEAST_GAIN, Changes, Explained, Queue, Tried, Waterfall
from simulator.results.folder import Results
from simulator.scenario.jobs import load_scenario
from simulator.scenario.scenario import Scenario
from simulator.workload.requests import longest_tokens

MOST_REQUESTS = 2_000
"""Judged requests of a longer trace with which changes are tried: some ten of them for three
deployments then take about a minute on two cores."""


@dataclass(frozen=True)
class _Place:
    """Deployment of a scenario that changes are tried on."""

    scenario: Scenario
    number: int
    """Number of the deployment in the scenario."""
    fidelity: Fidelity

    def try_change(self, overrides: Sequence[str], seeds_on: int = 0) -> Trial:
        """Serve the scenario's requests with a change.

        Args:
            seeds_on: seeds counted on from the scenario's.

        Raises:
            UserError: if the changed deployment is refused, or may not start.
        """
        seed = self.scenario.seed + seeds_on
        changed = load_scenario(self.scenario, overrides, seed)
        alone = changed.model_copy(update={"deployments": (changed.deployments[self.number],)})
        (plan,), trace = prepare_run(alone)
        for pool in plan.pools if overrides else ():
            for note in start_notes(pool, longest_tokens(trace)):
                raise UserError(str(note))
        return Trial(plan, trace, alone.workload.slo, seed, self.fidelity)


class _Base(NamedTuple):
    """Figures of a deployment without any change."""

    metric: str
    """Metric by which changes are ranked."""
    value: float
    other_value: float
    """Metric with the next seed."""
    samples: dict[str, Floats]
    """Metrics in all samples of the calibration's error."""


class _Task(NamedTuple):
    """Change to be tried."""

    place: _Place
    base: _Base
    change: Change


def explain_run(
    scenario: Scenario,
    plans: Sequence[DeploymentPlan],
    results: Results,
    fidelity: Fidelity,
    workers: int | None,
    address: str | None,
    progress: Progress,
) -> dict[str, object]:
    """Explain a run: the fields of an :class:`~simulator.results.explained.Explained` by
    deployment, as ``run.json`` holds them.

    Args:
        workers: processes that try changes, with the same results.
        address: Ray cluster whose nodes try changes.
    """
    workload = results.run["workload"]
    num_requests = int(workload["num_requests"])
    most = MOST_REQUESTS + workload.get("num_lead_in", 0)
    stretch = [f"workload.num_requests={most}"] if num_requests > most else []
    short = load_scenario(scenario, stretch)
    places = [_Place(short, number, fidelity) for number in range(len(plans))]
    shown = count_part(progress, "dividing the time of tokens", len(plans))
    parts: list[tuple[tuple[Waterfall, ...], Queue]] = []
    for plan in plans:
        queue = measure_queue(plan, results.select_judged(plan.name), results.steps[plan.name])
        parts.append((make_waterfalls(plan, results, scenario.folder), queue))
        shown(len(parts))
    changes = [
        list_changes(plan, number, queue)
        for number, (plan, (_, queue)) in enumerate(zip(plans, parts, strict=True))
    ]
    with Workers(workers, address) as pool:
        shown = count_part(progress, "deployments as they are", len(plans))
        bases = pool.map(_measure_base, places, shown)
        tasks = [
            _Task(place, base, change)
            for place, base, own, (waterfalls, _) in zip(places, bases, changes, parts, strict=True)
            for change in own
            if is_worth_trying(change, waterfalls)
        ]
        shown = count_part(progress, "changes that may help", len(tasks))
        tried = pool.map(_try_task, tasks, shown, group=lambda task: task.place.number)
    done = list(zip(tasks, tried, strict=True))
    return {
        plan.name: asdict(
            Explained(
                *own_parts,
                Changes(
                    base.metric,
                    base.value,
                    stretch,
                    min(num_requests, most),
                    [
                        *_rank([one for task, one in done if task.place is place]),
                        *_leave_out(own, own_parts[0], place),
                    ],
                ),
            )
        )
        for plan, place, base, own, own_parts in zip(
            plans, places, bases, changes, parts, strict=True
        )
    }


def _measure_base(place: _Place) -> _Base:
    trial = place.try_change(())
    metric = trial.choose_metric()
    other = place.try_change((), seeds_on=1).values[metric]
    return _Base(metric, trial.values[metric], other, trial.samples)


def _try_task(task: _Task) -> Tried:
    """Try a change; with its band where it helps."""
    place, base, change = task
    overrides, metric, begun = list(change.overrides), base.metric, _begin(change, place)
    try:
        trial = place.try_change(overrides)
    except UserError as error:
        return replace(begun, reason=_shorten(error))
    value = trial.values[metric]
    gain = measure_gain(metric, base.value, value)
    tried = replace(begun, value=value, gain=gain)
    if not gain >= LEAST_GAIN:
        return tried
    gains = [gain, *find_band(metric, base.samples, trial.samples)]
    # Otherwise another seed can but widen what is noise already.
    if min(gains) > 0 and base.other_value > 0:
        other = place.try_change(overrides, seeds_on=1).values[metric]
        gains.append(measure_gain(metric, base.other_value, other))
    return replace(tried, band=[min(gains), max(gains)])


def _begin(change: Change, place: _Place) -> Tried:
    """Describe a change before it is tried."""
    engine = place.scenario.deployments[place.number].engine
    offered_by = None if change.needs is None else find_offering(change.needs, engine)
    return Tried(
        change.text, list(change.overrides), resource=change.resource, offered_by=offered_by
    )


def _shorten(error: UserError) -> str:
    """Shorten an error to its reason, without the place and the remedies."""
    return one_line(str(error)).rpartition("]: ")[2].partition("; ")[0]


def _rank(tried: Sequence[Tried]) -> list[Tried]:
    """Order changes by their gain, those that are refused last."""
    return sorted(tried, key=lambda one: -one.gain if one.gain is not None else float("inf"))


def _leave_out(
    changes: Sequence[Change], waterfalls: Sequence[Waterfall], place: _Place
) -> Iterator[Tried]:
    """List the changes that address too little to be tried."""
    for change in changes:
        if not is_worth_trying(change, waterfalls):
            share = 100 * find_bound(change, waterfalls)
            kind = "saves" if change.resource else "addresses"
            reason = f"{kind} {share:.1f} % of a token's time"
            yield replace(_begin(change, place), reason=reason)
