"""Bands of a run's figures, and probabilities that one deployment is better than another.

The engine serves the same requests with steps that take as long as at both ends of its
calibration's band, since a queue makes more of an error than the steps themselves have. A band's
ends are the figures of these runs. Probabilities are over samples of the error, which deployments
share in part (:mod:`~simulator.planner.samples`); between two runs figures are interpolated, but
not over a knee (:func:`find_knees`): there a sample has the figure of the run that it is nearer to.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.base.progress import Progress, show_nothing
from simulator.config.workload import SLO
from simulator.deployment.conditions import list_instants
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.pool import PoolState
from simulator.engine.shards import share_table
from simulator.engine.table import StepTable, slow_table
from simulator.engine.timeline import MakeTable, run_plan
from simulator.planner.analytical import Curve
from simulator.planner.calibration_error import Z_80, CalibrationError, Edges, Floats, read_bands
from simulator.planner.estimate import estimate_error
from simulator.planner.samples import ErrorSamples
from simulator.planner.traffic import Traffic, subset
from simulator.policies.contracts import list_looks, scales
from simulator.results.metrics import METRICS, measure_ttft, summarise
from simulator.results.run_bands_text import BandNote, Bands
from simulator.results.tables import DeploymentRecord
from simulator.workload.requests import longest_tokens
from simulator.workload.traces import RequestTrace

MOST_REQUESTS = 6_000
"""Requests of the stretch of a longer trace by which figures of the whole are widened."""
MOST_BETWEEN = 4
"""Runs between the ends of the band and the run itself, where a knee lies."""
FACTOR = 2.0
"""Ratio of two figures from which nothing is said of what lies between them."""
_STEEP = 1.25
"""Per cent by which a figure moves as steps move by one, above which queues make it."""
_FURTHEST = 2.5
"""Standard deviations beyond which figures are not extrapolated from the ends of the band."""
_LATENCIES = ("ttft_p50_s", "tpot_p50_s")
"""Figures whose geometric mean is ``latency``."""
_JUDGED = (*_LATENCIES, "slo_attainment")
"""Figures by whose knees runs between are chosen: deployments are compared by them."""
_OF_FIRST_TOKENS = ("ttft_", "e2e_", "slo_attainment", "goodput_")
"""Beginnings of figures that a later first token moves."""


class FigureSamples(NamedTuple):
    """One deployment's figures under the error of its prices."""

    values: dict[str, Floats]
    """In all samples, ``[n]`` each."""
    edges: dict[str, Edges]
    """10th and 90th percentile, the figure itself among them: those of the runs at both ends of the
    prices' band, and of first tokens as far off as their fit's band has them."""
    notes: tuple[BandNote, ...]
    knees: tuple[str, ...]
    """Figures of which two neighbouring runs stay apart, so that samples between have the nearer
    one's."""
    source: str
    requests: tuple[int, int]
    """First and last of the requests, counted from 1, that were served for it."""


class StepTables:
    """Step tables of one plan, one for each placement of its experts, filled once and slowed as
    asked, and shared with other plans of this process that place the same alike; another process
    fills its own.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[str, bytes], StepTable] = {}

    def slow(self, factor: float) -> MakeTable:
        """A function that makes a table whose seconds are ``factor`` times as long."""

        def fill(pool: PoolState, stream: str) -> StepTable:
            key = (stream, _digest_placement(pool.plan.placement))
            if key not in self._tables:
                self._tables[key] = share_table(pool, stream)
            return slow_table(self._tables[key], factor)

        return fill

    def __reduce__(self) -> tuple[type[StepTables], tuple[()]]:
        """Hand on empty tables, for this process may fill more while it hands on."""
        return StepTables, ()


def _digest_placement(placement: Placement) -> bytes:
    """A digest of the ranks that experts lie on."""
    if placement.experts is None:
        return b""
    placed = placement.experts.placed
    return hashlib.blake2b(placed.expert_LP.tobytes() + placed.rank_LP.tobytes()).digest()


def draw_figures(
    plan: DeploymentPlan,
    trace: RequestTrace,
    slo: SLO,
    seed: int,
    own: pd.Series,
    record: DeploymentRecord | None,
    tables: StepTables,
    tick: Progress = show_nothing,
) -> FigureSamples:
    """A deployment's figures in all samples of a seed, which all deployments share.

    At most twice as many requests are served as the trace has; of a run at another fidelity three
    times as many, at ``step``.

    Args:
        own: the run's own figures, its row of the summary.
        record: what the plan did at the ``step`` fidelity, which is not served again where the
            whole trace is looked at; ``None`` if it ran at another one.
    """
    first, end = choose_stretch(plan, trace)
    budget = 2 * trace.num_requests
    if end - first < trace.num_requests:
        judge_from_s = max(0.0, trace.judge_from_s - float(trace.arrival_s[first]))
        trace = replace(subset(trace, np.arange(first, end)), judge_from_s=judge_from_s)
        record = None
    bands, runs = read_bands(plan, plan.prefill is not None), _Runs(plan, trace, slo, tables, tick)
    if record is not None:
        runs.records[1.0], runs.figures[1.0] = record, {key: float(own[key]) for key in METRICS}
    runs.serve(sorted({*bands.token, 1.0} - runs.figures.keys()))
    runs.add_between(budget)
    alone = runs.figures[1.0]
    error = _estimate_error(plan, trace, alone["tpot_p50_s"])
    scores, factors = _place_runs(error, runs.figures)
    ran = [runs.figures[factor] for factor in factors]
    off = np.exp(error.shift_first_token(scores))
    shifted = [runs.shift_first_tokens(float(one)) for one in off]
    is_end = np.isin(np.abs(scores), Z_80)
    at = np.clip(ErrorSamples(seed).draw_scores(error), -_FURTHEST, _FURTHEST)
    values: dict[str, Floats] = {}
    edges: dict[str, Edges] = {}
    notes: list[BandNote] = []
    knees: list[str] = []
    for key in (key for key, described in METRICS.items() if described.better and key in own):
        value = float(own[key])
        found_2K = np.array([[row[key] for row in rows] for rows in (ran, shifted)])
        if not np.isfinite([*found_2K.ravel(), value]).all():
            continue
        ran_K, shifted_K = _move(value, found_2K, alone[key], key)
        joined_K = ran_K
        if key.startswith(_OF_FIRST_TOKENS):
            joined_K = _join(ran_K, shifted_K, off, factors, METRICS[key].better == "lower")
        is_knee = find_knees(ran_K, factors)
        values[key] = _interpolate(scores, joined_K, is_knee, at, key)
        knees += [key] if is_knee.any() else []
        ends = [*ran_K[is_end], *joined_K[is_end], value]
        edges[key] = low, high = float(min(ends)), float(max(ends))
        if high >= FACTOR * low and not math.isclose(low, high, abs_tol=1e-12):
            span = np.sort(ran_K)[[0, -1]], factors[[0, -1]]
            kind = "near_saturation" if find_knees(*span)[0] else "wide_error"
            notes.append(BandNote(kind, plan.name, key, low, high))
    medians = [values[key] for key in _LATENCIES if key in values and (values[key] > 0).all()]
    if medians:
        values["latency"] = np.exp(np.mean(np.log(medians), axis=0))
    return FigureSamples(values, edges, tuple(notes), tuple(knees), bands.source, (first + 1, end))


def choose_stretch(plan: DeploymentPlan, trace: RequestTrace) -> tuple[int, int]:
    """The first request, and the one behind the last, by which a deployment's band is made: all
    where that costs no more than twice the run, or where something happens at set times.

    Of a longer trace :data:`MOST_REQUESTS`, of which a quarter are those that bring most tokens a
    second of all that follow one another; half come before, so that queues are as long.
    """
    count, busy = trace.num_requests, MOST_REQUESTS // 4
    if 2 * count < 3 * MOST_REQUESTS or _is_timed(plan):
        return 0, count
    tokens = np.concatenate([[0], np.cumsum(trace.num_input + trace.num_output)])
    seconds = trace.arrival_s[busy - 1 :] - trace.arrival_s[: count - busy + 1]
    busiest = int(np.argmax((tokens[busy:] - tokens[:-busy]) / np.maximum(seconds, 1e-9)))
    first = min(max(busiest - MOST_REQUESTS // 2, 0), count - MOST_REQUESTS)
    return first, first + MOST_REQUESTS


def _is_timed(plan: DeploymentPlan) -> bool:
    """Whether replicas, experts or GPUs change at set times of a run."""
    return any(
        pool.failures
        or scales(pool.serving.scaling, pool.serving.replicas)
        or next(list_looks(pool.serving.rebalancing), None) is not None
        or list_instants(pool.placement.cluster.degraded)
        for pool in plan.pools
    )


@dataclass
class _Runs:
    """Runs of the same requests with steps that take so many times as long."""

    plan: DeploymentPlan
    trace: RequestTrace
    slo: SLO
    tables: StepTables
    tick: Progress
    records: dict[float, DeploymentRecord] = field(default_factory=dict)
    """By factor on the steps' seconds."""
    figures: dict[float, dict[str, float]] = field(default_factory=dict)
    """By factor on the steps' seconds."""
    _num_served: int = 0

    def serve(self, factors: Sequence[float]) -> None:
        """Serve the requests with each of some factors on the steps' seconds."""
        count = self.trace.num_requests
        total = self._num_served + count * len(factors)

        def show(done: int) -> None:
            self.tick(f"bands of {self.plan.name}", self._num_served + done, total)

        for factor in factors:
            show(0)
            table = self.tables.slow(factor)
            self.records[factor] = run_plan(self.plan, self.trace, "step", show, table)
            self._num_served += count
            self.figures[factor] = self._sum_up(self.records[factor])

    def _sum_up(self, record: DeploymentRecord) -> dict[str, float]:
        row = summarise([self.plan], [record], self.slo).iloc[0]
        return {key: float(row[key]) for key in METRICS}

    def add_between(self, budget: int) -> None:
        """Serve the requests at the middle of the widest knee, over and over, while no more than
        ``budget`` requests are served in all and there is one.
        """
        for _ in range(MOST_BETWEEN):
            factors = np.array(sorted(self.figures))
            widest = np.zeros(len(factors) - 1)
            for key in _JUDGED:
                values = np.array([self.figures[factor][key] for factor in factors])
                gaps = _measure_gaps(values)
                widest = np.maximum(widest, np.where(find_knees(values, factors), gaps, 0.0))
            left = budget - self._num_served
            if left < self.trace.num_requests or not widest.any():
                return
            place = int(np.argmax(widest))
            self.serve([math.sqrt(factors[place] * factors[place + 1])])

    def shift_first_tokens(self, off: float) -> dict[str, float]:
        """The figures of the run itself if first tokens took so many times as long, and what comes
        behind them moved along.
        """
        record = self.records[1.0]
        later_s = measure_ttft(record.requests) * (off - 1)
        later = _Later(record.requests, later_s.fillna(0.0))
        return self._sum_up(replace(record, requests=later))


class _Later:
    """Requests whose tokens come some seconds later."""

    def __init__(self, requests: Columns, later_s: pd.Series) -> None:
        self._requests, self._later_s = requests, later_s

    def __getitem__(self, name: str, /) -> pd.Series:
        column = self._requests[name]
        return column + self._later_s if name in ("first_token_s", "finish_s") else column

    def __len__(self) -> int:
        return len(self._requests)


def _estimate_error(plan: DeploymentPlan, trace: RequestTrace, tpot_s: float) -> CalibrationError:
    """The error of the decode step that takes as long as a time per token; of the shortest step
    where nothing is decoded.
    """
    longest = max(longest_tokens(trace), plan.serving.rules.token_budget)
    curve, most = Curve(plan, Traffic.measure(trace), longest), plan.serving.rules.max_sequences
    return estimate_error(curve, most, tpot_s if tpot_s > 0 else 0.0, plan.prefill is not None)


def _place_runs(error: CalibrationError, tried: Iterable[float]) -> tuple[Floats, Floats]:
    """Standard deviations and factors of the runs, rising; a run at both ends of a band without
    width stands at both.
    """
    low, high = error.bands.token
    points = [(-Z_80, low), (Z_80, high)]
    for factor in set(tried) - {low, high}:
        off = math.log(factor) - error.middle
        points.append((off / error.spread if error.spread else 0.0, factor))
    scores, factors = np.array(sorted(points)).T
    return scores, factors


def _join(
    ran: Floats, shifted: Floats, off: Floats, factors: Floats, lower_is_better: bool
) -> Floats:
    """Figures of runs, and instead those by the error of first tokens where these come later and
    are worse, or sooner and better, unless steps are slower.
    """
    worse, better = (np.maximum, np.minimum) if lower_is_better else (np.minimum, np.maximum)
    sooner = np.where(factors > 1, ran, better(ran, shifted))
    return np.where(off > 1, worse(ran, shifted), sooner)


def _measure_gaps(figures: Floats) -> Floats:
    """Logarithms of the ratios of neighbouring figures, without sign; 0 between two zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.abs(np.diff(np.log(figures))), nan=0.0, posinf=math.inf)


def find_knees(figures: Floats, factors: Floats) -> NDArray[np.bool_]:
    """Whether neighbouring figures differ by :data:`FACTOR` or more, and by clearly more than the
    seconds of steps do.

    >>> find_knees(np.array([1.0, 1.5, 4.0, 9.0]), np.array([0.9, 1.0, 1.1, 3.0]))
    array([False,  True, False])
    """
    gaps, steps = _measure_gaps(figures), _measure_gaps(factors)
    return np.asarray((gaps >= math.log(FACTOR)) & (gaps > steps * _STEEP))


def _move(value: float, tried: Floats, alone: float, key: str) -> Floats:
    """A run's own figure, moved as far as that of a stretch of it moves: shares, and what is 0
    there, by their difference, others by their ratio.
    """
    if value == alone:
        return tried
    if METRICS[key].unit == "ratio":
        return np.clip(value + tried - alone, 0.0, 1.0)
    return value * tried / alone if alone > 0 else value + tried


def _interpolate(
    scores: Floats, figures: Floats, is_knee: NDArray[np.bool_], at: Floats, key: str
) -> Floats:
    """Figures at other standard deviations: on straight lines between and beyond those that were
    tried, of positive figures but shares these are of logarithms; at a knee the nearer one.
    """
    is_share = METRICS[key].unit == "ratio"
    in_logs = not is_share and bool((figures > 0).all())
    shown = np.log(figures) if in_logs else figures
    place = np.clip(np.searchsorted(scores, at) - 1, 0, len(scores) - 2)
    part = (at - scores[place]) / (scores[place + 1] - scores[place])
    part = np.where(is_knee[place], np.rint(np.clip(part, 0.0, 1.0)), part)
    found = shown[place] + part * (shown[place + 1] - shown[place])
    if in_logs:
        return np.asarray(np.exp(found))
    return np.clip(found, 0.0, 1.0 if is_share else math.inf)


def make_bands(drawn: Mapping[str, FigureSamples]) -> Bands:
    """Bands as ``run.json`` holds them.

    Figures are those of :data:`~simulator.results.metrics.METRICS` that have a better direction.

    Args:
        drawn: by deployment.
    """
    return {
        "sources": {name: one.source for name, one in drawn.items()},
        "requests": {name: list(one.requests) for name, one in drawn.items()},
        "deployments": {
            name: {key: list(edges) for key, edges in one.edges.items()}
            for name, one in drawn.items()
        },
        "knees": {name: list(one.knees) for name, one in drawn.items()},
        "notes": [note._asdict() for one in drawn.values() for note in one.notes],
        "better": {
            name: {
                other: _compare(one.values, drawn[other].values) for other in drawn if other != name
            }
            for name, one in drawn.items()
        },
    }


def _compare(mine: dict[str, Floats], theirs: dict[str, Floats]) -> dict[str, float]:
    """The share of samples in which each of one deployment's figures is better; half of those in
    which both are equal.
    """
    found = {}
    for key in filter(theirs.__contains__, mine):  # in one order, whatever the hash seed
        is_higher = key in METRICS and METRICS[key].better == "higher"
        gap = (mine[key] - theirs[key]) * (1 if is_higher else -1)
        equal = np.isclose(mine[key], theirs[key], rtol=1e-9, atol=1e-12)
        found[key] = float(((gap > 0) & ~equal).mean() + equal.mean() / 2)
    return found
