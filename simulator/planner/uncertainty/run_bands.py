"""Bands of a run's figures, and probabilities that one deployment is better than another.

The engine serves the same requests with steps that take as long as at both ends of its
calibration's band, since a queue makes more of an error than the steps themselves have. Between
those runs figures are interpolated over samples of the error that deployments share in part
(:mod:`~simulator.planner.samples`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.progress import Progress, count_part, show_nothing
from simulator.config.calibration import Calibration
from simulator.config.workload import SLO
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.pool import PoolState
from simulator.engine.shared_tables import share_table
from simulator.engine.table import StepTable, slow_table
from simulator.engine.timeline import MakeTable, run_plan
from simulator.planner.calibration_error import CalibrationError, Floats, read_bands
from simulator.planner.closed_form import Curve
from simulator.planner.estimate import estimate_error
from simulator.planner.samples import ErrorSamples
from simulator.planner.traffic import Traffic, subset
from simulator.results.metrics import (
    LATENCIES,
    METRICS,
    describe_latencies,
    is_in_time,
    latencies,
    summarise,
)
from simulator.results.tables import DeploymentRecord
from simulator.workload.requests import longest_tokens
from simulator.workload.traces import RequestTrace

MOST_REQUESTS = 6_000
"""First requests of a longer trace, by which figures of the whole are widened: that takes as long
as serving 18,000."""
_FURTHEST = 2.5
"""Standard deviations beyond which figures are not extrapolated from the ends of the band."""
_GRID = np.linspace(-_FURTHEST, _FURTHEST, 21)
"""Standard deviations at which every request's latencies are interpolated."""
_LATENCIES = ("ttft_p50_s", "tpot_p50_s")
"""Figures whose geometric mean is ``latency``."""


class FigureSamples(NamedTuple):
    """One deployment's figures in all samples, ``[n]`` each."""

    values: dict[str, Floats]
    source: str


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
) -> FigureSamples | None:
    """A deployment's figures in all samples of a seed, which all deployments share; ``None`` where
    its calibration is of one machine, whose error is shown by ``execute``.

    Args:
        own: the run's own figures, its row of the summary.
        record: what the plan did at the ``step`` fidelity, which is not served again where the
            whole trace is looked at; ``None`` if it ran at another one.
    """
    if not isinstance(plan.placement.calibration, Calibration):
        return None
    if trace.num_requests > MOST_REQUESTS:
        trace, record = subset(trace, np.arange(MOST_REQUESTS)), None
    bands = read_bands(plan, plan.prefill is not None)
    slower = sorted({*bands.token, 1.0})
    records = _serve_slowed(plan, trace, slower, record, tables, tick)
    rows = [summarise([plan], [one], slo).iloc[0] for one in records]
    served = [latencies(one.requests) for one in records]
    place = slower.index(1.0)
    error = _estimate_error(plan, trace, rows[place]["tpot_p50_s"])
    score = np.clip(ErrorSamples(seed).draw_scores(error), -_FURTHEST, _FURTHEST)
    log_slower, at = np.log(slower), error.middle + error.spread * score
    by_request = _interpolate_requests(log_slower, served, error, slo)
    alone = _describe(served[place], slo)
    values: dict[str, Floats] = {}
    for key in (key for key, described in METRICS.items() if described.better and key in own):
        value, tried = float(own[key]), np.array([float(row[key]) for row in rows])
        if not np.isfinite([*tried, value]).all():
            continue
        if key in by_request:
            drawn = np.interp(score, _GRID, by_request[key])
            values[key] = _move(value, drawn, alone[key], key)
        else:
            values[key] = _extrapolate(value, log_slower, tried, at, key)
    medians = [values[key] for key in _LATENCIES if key in values and (values[key] > 0).all()]
    if medians:
        values["latency"] = np.exp(np.mean(np.log(medians), axis=0))
    return FigureSamples(values, bands.source)


def _serve_slowed(
    plan: DeploymentPlan,
    trace: RequestTrace,
    slower: Sequence[float],
    known: DeploymentRecord | None,
    tables: StepTables,
    tick: Progress,
) -> list[DeploymentRecord]:
    """Serve the requests with steps that take so many times as long, but for what is known."""
    count = trace.num_requests
    shown = count_part(tick, f"bands of {plan.name}", count * len(slower))
    return [
        known
        if factor == 1.0 and known is not None
        else run_plan(
            plan,
            trace,
            "step",
            lambda done, before=place * count: shown(before + done),  # type: ignore[misc]
            tables.slow(factor),
        )
        for place, factor in enumerate(slower)
    ]


def _estimate_error(plan: DeploymentPlan, trace: RequestTrace, tpot_s: float) -> CalibrationError:
    """The error of the decode step that takes as long as a time per token; of the shortest step
    where nothing is decoded.
    """
    longest = max(longest_tokens(trace), plan.serving.rules.token_budget)
    curve, most = Curve(plan, Traffic.measure(trace), longest), plan.serving.rules.max_sequences
    return estimate_error(curve, most, tpot_s if tpot_s > 0 else 0.0, plan.prefill is not None)


def make_bands(drawn: Mapping[str, FigureSamples | None], num_requests: int) -> dict[str, Any]:
    """Bands as ``run.json`` holds them: for each deployment the 10th and 90th percentile of each
    figure, and for each two the probability that the first is better; empty where not all are
    known.

    Figures are those of :data:`~simulator.results.metrics.METRICS` that have a better direction.

    Args:
        drawn: by deployment.
        num_requests: of the trace.
    """
    known = {name: one for name, one in drawn.items() if one is not None}
    if len(known) < len(drawn):
        return {}
    return {
        "num_requests": min(num_requests, MOST_REQUESTS),
        "sources": {name: one.source for name, one in known.items()},
        "deployments": {
            name: {key: _find_edges(values) for key, values in one.values.items()}
            for name, one in known.items()
        },
        "better": {
            name: {
                other: _compare(one.values, known[other].values) for other in known if other != name
            }
            for name, one in known.items()
        },
    }


def _interpolate_requests(
    log_slower: Floats, served: Sequence[pd.DataFrame], error: CalibrationError, slo: SLO
) -> dict[str, Floats]:
    """Figures of all requests' latencies at every point of :data:`_GRID`.

    Each request's are between those that it had at the speeds that were tried. Its first token
    comes no sooner than the error of first tokens has it, and its last one as much later.

    Args:
        served: latencies at each of the speeds.
    """
    log_KN = {
        name: np.log(np.maximum([one[name].to_numpy(float) for one in served], 1e-12))
        for name in LATENCIES
    }
    alone = log_KN["ttft_s"][int(np.argmin(np.abs(log_slower)))]
    rows = []
    for score in _GRID:
        at = error.middle + error.spread * score
        found = {
            name: np.exp(_interpolate(log_slower, values, at)) for name, values in log_KN.items()
        }
        first_s = np.exp(alone + float(error.shift_first_token(np.array(score))))
        later_s = np.maximum(first_s - found["ttft_s"], 0.0)
        frame = pd.DataFrame(found)
        frame["ttft_s"] += later_s
        frame["e2e_s"] += later_s
        rows.append(_describe(frame, slo))
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def _interpolate(tried: Floats, values_KN: Floats, at: float) -> Floats:
    """``[N]`` values at a point, straight between and beyond those that were tried."""
    if len(tried) == 1:
        return np.asarray(values_KN[0])
    place = int(np.clip(np.searchsorted(tried, at) - 1, 0, len(tried) - 2))
    share = (at - tried[place]) / (tried[place + 1] - tried[place])
    return np.asarray(values_KN[place] + share * (values_KN[place + 1] - values_KN[place]))


def _describe(latency: pd.DataFrame, slo: SLO) -> dict[str, float]:
    """Figures of requests' latencies, shares in time included."""
    share = float(is_in_time(latency, slo).mean())
    return {**describe_latencies(latency), "slo_attainment": share, "goodput_per_s": share}


def _move(value: float, drawn: Floats, alone: float, key: str) -> Floats:
    """A run's own figure, moved as far as that of its beginning moves: shares by their difference,
    others by their ratio.
    """
    if key == "slo_attainment":
        return np.clip(value + drawn - alone, 0.0, 1.0)
    return np.asarray(value * drawn / alone) if alone > 0 else np.full(len(drawn), value)


def _extrapolate(value: float, tried: Floats, values: Floats, at: Floats, key: str) -> Floats:
    """A figure where steps are so much slower (logarithms): the run's own, moved as far as the
    figures that were tried move, along straight lines between and beyond them; of positive figures
    but shares these are of logarithms.
    """
    is_share = METRICS[key].unit == "ratio"
    in_logs = not is_share and value > 0 and bool((values > 0).all())
    shown = np.log(values) if in_logs else values
    if len(tried) == 1:
        return np.full(len(at), value)

    def line(points: Floats) -> Floats:
        place = np.clip(np.searchsorted(tried, points) - 1, 0, len(tried) - 2)
        slope = (shown[place + 1] - shown[place]) / (tried[place + 1] - tried[place])
        return np.asarray(shown[place] + slope * (points - tried[place]))

    moved = line(at) - line(np.zeros(1))
    if in_logs:
        return np.asarray(value * np.exp(moved))
    return np.clip(value + moved, 0.0, 1.0 if is_share else math.inf)


def _find_edges(values: Floats) -> list[float]:
    return [float(edge) for edge in np.quantile(values, [0.1, 0.9])]


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
