"""Assessment of an answer: other conditions, lost nodes, the calibration's error and chance, all in
one batch on all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from simulator.base.data import cache_lookups
from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Spare
from simulator.parallel.workers import Workers, use_workers
from simulator.planner.conditions import AS_ASKED, Change, Trials, describe_stretch
from simulator.planner.crossover import map_crossover
from simulator.planner.evaluations import FigureBands
from simulator.planner.explore import Evaluation
from simulator.planner.headroom import Headroom, find_sizes, measure_headroom
from simulator.planner.losses import LOST, idle_costs, spare_nodes
from simulator.planner.samples import CostSamples, GpuDemand, Priced, price
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult, estimate_work
from simulator.planner.uncertainty.bands import (
    RESAMPLED,
    Choices,
    FixedSize,
    RowBands,
    add_probabilities,
    band_losses,
    band_spare_nodes,
    draw_headroom,
    estimate_all,
    find_kept,
    find_second_choice,
    simulate_demand,
    summarise_confidence,
    try_fixed_size,
)
from simulator.planner.uncertainty.sensitivity import (
    Sensitivity,
    best_of_kind,
    changes_over_rates,
    compare_at_targets,
    list_changes,
    over_rates,
    rivals,
)
from simulator.results.answer import (
    Comparison,
    Confidence,
    CrossoverMap,
    Idle,
    LossRow,
    SensitivityRow,
    Sizes,
    SpareRow,
)

_SPARE = tuple(Change(spare=lost) for lost in (Spare(), *LOST))
"""Changes of nothing but what may be lost."""
_DEMAND_WORK = 5.0
"""Explorations in a simulated demand."""
_OTHER_WORK = 3.0
"""Work of an exploration under other conditions over one as asked: a new step table is filled, or a
search begins further from its end."""
_LEAST_WORK = 0.5
"""Work of an exploration at little traffic over one as asked."""


class Exploration(NamedTuple):
    """A short task: its result is stored, where the few long tasks that put them together find
    it.
    """

    candidate: Candidate
    change: Change | None
    """Differences from the question; ``None`` = demand over what the calibration may be off."""

    @property
    def work(self) -> float:
        """Rough duration, in explorations of one replica as asked."""
        if self.change is None:
            return estimate_work(self.candidate) * _DEMAND_WORK
        changed = self.change.prompts, self.change.network, self.change.skew
        other = 1.0 if changed == (1.0, 1.0, 1.0) else _OTHER_WORK
        return estimate_work(self.candidate) * other * max(_LEAST_WORK, self.change.rate)

    @cache_lookups()
    def run(self, trials: Trials) -> None:
        """Explore it, for the store."""
        if self.change is None:
            simulate_demand(trials, self.candidate)
        else:
            trials.find(self.candidate, self.change)


class Assessment(NamedTuple):
    """Parts of an answer, named as in it, that take further trials."""

    crossover: CrossoverMap | None = None
    headroom: Headroom = Headroom(0.0)
    sizes: Sizes | None = None
    bands: Mapping[Candidate, FigureBands] = {}
    """Bands of every deployment that meets the targets."""
    sensitivity: list[SensitivityRow] = []
    losses: list[LossRow] = []
    idle: Idle | None = None
    spare_nodes: list[SpareRow] = []
    confidence: Confidence | None = None
    moe_vs_dense: Comparison | None = None


class _Explored(NamedTuple):
    """Everything that is asked of one candidate."""

    explored: dict[Change, Priced]
    demand: GpuDemand | None
    """Simulated, as asked; of the candidates that are compared most closely."""
    tried: FixedSize | None = None
    """Trials of the recommended deployment at its size."""
    found: Assessment = Assessment()
    """Parts that are of the recommended deployment only, without bands."""


class _Questions(NamedTuple):
    """Everything that is asked of candidates, in whichever process."""

    trials: Trials
    choices: Choices
    changes: Mapping[Candidate, Sequence[Change]]
    """Changes under which candidates are explored again."""

    def list_explorations(self, rates: Iterable[tuple[Candidate, Change]]) -> list[Exploration]:
        """All that will be asked for: many short tasks of which all cores have some until the
        end.
        """
        choices = self.choices
        asked: list[tuple[Candidate, Change | None]] = [
            *((candidate, change) for candidate, some in self.changes.items() for change in some),
            *((candidate, None) for candidate in choices.candidates),
            *((candidate, change) for candidate in choices.resampled for change in RESAMPLED),
            *rates,
        ]
        return [Exploration(*one) for one in dict.fromkeys(asked)]

    def assess(self, candidate: Candidate) -> _Explored:
        """Explore one candidate under every change, and its demand: together, as they share what
        was filled.
        """
        explored, asked = dict[Change, Priced](), self.trials.space.question
        for change in self.changes.get(candidate, ()):
            is_asked_spare = change.spare == asked.spare and asked.failures.availability is None
            spare = None if is_asked_spare else change.spare
            is_traffic = change._replace(spare=spare, rate=1.0) == AS_ASKED
            found = price(self.trials.find(candidate, change))
            sizes: tuple[int, ...] = ()
            if spare is not None:
                space = self.trials.open_explorer(candidate, change).space
                sizes = space.list_filled_sizes(*candidate.sides)
            explored[change] = found._replace(rate=change.rate if is_traffic else None, sizes=sizes)
        if candidate not in self.choices.candidates:
            return _Explored(explored, None)
        resamples = candidate in self.choices.resampled
        return _Explored(explored, simulate_demand(self.trials, candidate, resamples))

    def assess_first(self, copying: Evaluation | None) -> _Explored:
        """Explore the recommended deployment.

        Args:
            copying: the best deployment with copies of experts.
        """
        trials, first = self.trials, self.choices.first
        candidate, size, known = first.candidate, first.cluster_size, self.assess(first.candidate)
        if size is None or known.demand is None:
            raise ValueError("the first choice has no size")
        tried = try_fixed_size(trials, candidate, size, known.demand)
        found = Assessment(
            headroom=tried.headroom,
            losses=band_losses(trials, candidate, size, known.demand),
            idle=idle_costs(trials, first, copying),
            spare_nodes=spare_nodes(trials, candidate),
        )
        return known._replace(tried=tried, found=found)


def assess_alone(result: SearchResult) -> Assessment:
    """Assess an answer without other conditions, losses and bands."""
    crossover = map_crossover(result)
    if not result.met:
        return Assessment(crossover)
    first = result.met[0]
    headroom = measure_headroom(result.trials, first.candidate, first.cluster_size)
    return Assessment(crossover, headroom, find_sizes(result, first))


def assess(
    result: SearchResult,
    tick: Progress = show_nothing,
    workers: Workers | int | None = None,
) -> Assessment:
    """Assess an answer; its map, sizes and headroom with all else, since they take as long and all
    cores share them.
    """
    met = result.met
    if not met:
        return assess_alone(result)
    first, moe, dense = met[0], best_of_kind(result, "MoE"), best_of_kind(result, "dense")
    choices = Choices(first, find_second_choice(result), moe, dense)
    trials, changes = result.trials, list_changes(result)
    changes[first.candidate] += _SPARE
    questions = _Questions(trials, choices, changes)
    jobs: dict[Candidate | str, Callable[[], Any]] = {}
    rates: list[tuple[Candidate, Change]] = []
    if moe is not None and dense is not None:
        both = rivals(result, moe, changes), rivals(result, dense, changes)
        rates = changes_over_rates(trials, *both)
        jobs["rates"] = partial(over_rates, trials, *both)
    copying = next((one for one in met if one.candidate.shape.slots), None)
    jobs |= {
        first.candidate: partial(questions.assess_first, copying),
        "crossover": partial(map_crossover, result),
        "estimates": partial(estimate_all, trials, met, result.traffic.rate_per_s),
        "sizes": partial(find_sizes, result, first),
    }
    others = [one for one in dict.fromkeys([*changes, *choices.candidates]) if one not in jobs]
    jobs |= {candidate: partial(questions.assess, candidate) for candidate in others}
    explorations = [] if trials.place is None else questions.list_explorations(rates)
    done = _run_all(jobs, trials, explorations, tick, workers)
    assessed: dict[Candidate, _Explored] = {one: done[one] for one in (first.candidate, *others)}
    estimates = dict(zip((one.candidate for one in met), done["estimates"], strict=True))
    demands = {one: estimate.demand for one, estimate in estimates.items() if estimate is not None}
    demands |= {one: found.demand for one, found in assessed.items() if found.demand is not None}
    latest = {one: estimate.latest for one, estimate in estimates.items() if estimate is not None}
    costs = CostSamples(result, demands, latest)
    explored = {one: assessed[one].explored for one in changes}
    _, demand, tried, found = assessed[first.candidate]
    if demand is None or tried is None:
        raise ValueError("nothing is known of the first choice")
    own = demand, tried, costs.errors
    costs.settle(first.candidate, draw_headroom(*own, find_kept(*own)))
    bander = RowBands(result, first.candidate, tried, costs, estimates)
    bands = add_probabilities({one.candidate: bander.band_row(one) for one in met}, met, costs)
    stretch = describe_stretch(trials, first.candidate)
    rows = Sensitivity(result, explored, costs, stretch).list_rows()
    spare = [explored[first.candidate][change] for change in _SPARE]
    return found._replace(
        crossover=done["crossover"],
        sizes=done["sizes"],
        bands=bands,
        sensitivity=rows,
        spare_nodes=band_spare_nodes(found.spare_nodes, spare, costs),
        confidence=summarise_confidence(result, choices, tried, costs),
        moe_vs_dense=compare_at_targets(result, done.get("rates"), rows, costs, bands),
    )


def _run_all(
    jobs: Mapping[Candidate | str, Callable[[], Any]],
    trials: Trials,
    explorations: list[Exploration],
    tick: Progress,
    workers: Workers | int | None,
) -> dict[Candidate | str, Any]:
    """Results of all jobs, which find those of the explorations in the store."""
    name, count, before = "trying what the answer depends on", len(jobs), len(explorations)
    tick(name, 0, before + count)
    with use_workers(workers) as pool:
        pool.map(
            partial(Exploration.run, trials=trials),
            explorations,
            lambda n: tick(name, n, before + count),
            group=attrgetter("candidate"),
            weight=attrgetter("work"),
        )
        done = pool.map(
            _run_job, list(jobs.values()), lambda n: tick(name, before + n, before + count)
        )
    return dict(zip(jobs, done, strict=True))


@cache_lookups()
def _run_job(job: Callable[[], Any]) -> Any:
    return job()
