"""Fit of the table ``disaggregation`` on disaggregated serving points: how far measured pools of
workers are from what their steps and their engine's hand-over take.

Points that do not say how many workers they had give what is assumed of them, by engine. What is
reported is of points whose whole GPU was left out; nearly all are of one model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator.base.arrays import Floats
from simulator.base.errors import UserError
from simulator.config.calibration import ANY
from simulator.lab.calibration.serving.engine import read_measured, residuals
from simulator.lab.validation.kernels import COMMAND, SOURCE, Tables
from simulator.lab.validation.serving import Group, groups
from simulator.lab.validation.serving.answer import open_pools
from simulator.lab.validation.serving.deployments import accelerator_of, deployment_of
from simulator.lab.validation.serving.disagg import Load, Pools, latencies
from simulator.parallel.workers import sweep

sources = ("serving_points.csv.gz",)
_WORKERS = (1, 2, 3, 4, 6, 8)
"""Decode workers that are tried where the table does not say."""
_LEAST_ROWS = 12
"""Fewer points give no coefficients of their own."""


class Loaded(NamedTuple):
    """One point, ready to be answered with any coefficients."""

    place: int
    """Place in the table."""
    engine: str
    model: str
    gpu: str
    calibration: str
    load: Load
    pools: dict[int, Pools]
    """By decode workers where the table does not say; one entry where it does."""
    measured: tuple[float, float]

    @property
    def is_said(self) -> bool:
        """Whether the table says how many workers there are."""
        return next(iter(self.pools.values())).workers is not None


class Assumed(NamedTuple):
    """Assumption about points of one engine that do not say their workers."""

    unsaid_workers: int
    unsaid_drafts: float

    def predict(self, point: Loaded) -> Floats:
        """Seconds of TTFT and TPOT, ``[2]``."""
        pools = point.pools.get(self.unsaid_workers, next(iter(point.pools.values())))
        return np.array(latencies(pools, point.load, self.unsaid_drafts), dtype=float)


def fit(tables: Sequence[pd.DataFrame]) -> Tables:
    """Fit the table of every calibration that has such points."""
    (table,) = tables
    return fit_points(load_points(table))


def fit_points(points: list[Loaded]) -> Tables:
    """Assume workers of every engine, and score that on every GPU family, by what was assumed
    without the GPU; nothing where points are few.
    """
    if min(Counter({True: 0, False: 0, **Counter(one.is_said for one in points)}).values()) < (
        _LEAST_ROWS
    ):
        return {}
    ratios_N2 = cross_validate(points)
    fitted = assume_workers(points)
    tables: dict[str, dict[str, dict[str, object]]] = {}
    for calibration in sorted({point.calibration for point in points}):
        tables[calibration] = {}
        for key in sorted(fitted):
            said_N2, unsaid_N2 = (
                _select(points, ratios_N2, is_said, calibration, key) for is_said in (True, False)
            )
            own = [
                point
                for point in points
                if key in (ANY, point.engine) and point.calibration == calibration
            ]
            tables[calibration][key] = _entry(key, calibration, fitted[key], said_N2, unsaid_N2) | {
                "models": _frequent(point.model for point in points),
                "gpus": _frequent(point.gpu for point in own),
            }
    return tables


def _frequent(names: Iterable[str]) -> tuple[str, ...]:
    """Names of enough points."""
    return tuple(sorted(name for name, count in Counter(names).items() if count >= _LEAST_ROWS))


def load_points(table: pd.DataFrame, workers: int | None = None) -> list[Loaded]:
    """Disaggregated points of a table that can be simulated, on so many processes; ``None`` = one a
    core.
    """
    places = np.flatnonzero(table["mode"] == "disagg")
    table = table.iloc[places].reset_index(drop=True)
    made, _ = groups(table)
    found: list[Loaded] = []
    for group, pools in zip(made, sweep(_pools, made, workers=workers), strict=True):
        for place, point, some in zip(group.rows, group.points, pools, strict=True):
            if some:
                gpu = accelerator_of(point)
                model, load = deployment_of(point).spec.model, Load.from_point(point)
                measured = read_measured(table, place)
                known = (point.engine, model, gpu.name, gpu.calibration, load, some, measured)
                found.append(Loaded(int(places[place]), *known))
    return found


def _pools(group: Group) -> list[dict[int, Pools]]:
    """Pools of every point of a group, by decode workers; none where it cannot be simulated."""
    found: list[dict[int, Pools]] = []
    for point in group.points:
        own: dict[int, Pools] = {}
        for workers in (1,) if point.says_workers else _WORKERS:
            with suppress(UserError):
                if point.prefill:
                    own[workers] = open_pools(point, point.prefill, workers)[0]
        found.append(own)
    return found


def assume_workers(points: list[Loaded]) -> dict[str, Assumed]:
    """Workers and drafts that points which do not say theirs are best answered with, by engine; of
    all engines together under :data:`ANY`.
    """
    unsaid = [point for point in points if not point.is_said]
    found = {ANY: Assumed(*_guess(unsaid))}
    for engine in sorted({point.engine for point in points}):
        own = [point for point in unsaid if point.engine == engine]
        if len(own) >= _LEAST_ROWS:
            found[engine] = Assumed(*_guess(own))
    return found


def _guess(points: list[Loaded]) -> tuple[int, float]:
    """Decode workers and tokens of a step that the times per token of points which do not say
    theirs are best answered with.
    """
    found: list[tuple[float, int, float]] = []
    measured_N = np.log([point.measured[1] for point in points])
    for workers in _WORKERS:
        tokens_N = np.log(
            [point.pools[workers].decodes.token_s(point.load.concurrency) for point in points]
        )
        drafts = max(1.0, float(np.exp(np.median(tokens_N - measured_N))))
        found.append(
            (float(np.abs(tokens_N - measured_N - np.log(drafts)).mean()), workers, drafts)
        )
    return min(found)[1:]


def cross_validate(points: list[Loaded]) -> Floats:
    """Predicted over measured TTFT and TPOT ``[N, 2]`` of points, each GPU left out in turn."""
    ratios_N2 = np.full((len(points), 2), np.nan)
    for gpu in sorted({point.gpu for point in points}):
        fitted = assume_workers([point for point in points if point.gpu != gpu])
        for place, point in enumerate(points):
            if point.gpu == gpu:
                own = fitted.get(point.engine, fitted[ANY])
                ratios_N2[place] = own.predict(point) / point.measured
    return ratios_N2


def _select(
    points: list[Loaded], ratios_N2: Floats, is_said: bool, calibration: str, key: str
) -> Floats:
    """Ratios of an entry's points on its GPUs; where those are few, of all of its engine's."""
    of_key = np.array([point.is_said == is_said and key in (ANY, point.engine) for point in points])
    here = of_key & np.array([point.calibration == calibration for point in points])
    return np.asarray(ratios_N2[here if here.sum() >= _LEAST_ROWS else of_key])


def _entry(
    key: str,
    calibration: str,
    values: Assumed,
    said_N2: Floats,
    unsaid_N2: Floats,
) -> dict[str, object]:
    what = "all engines" if key == ANY else key
    source = (
        f"{len(said_N2)} disaggregated serving points of {what} that say their workers "
        f"and {len(unsaid_N2)} that do not, {calibration} or, where those are few, "
        f"all GPUs, {SOURCE}; cross-validated by leaving out each GPU, nearly all being "
        "of one model, DeepSeek-V3"
    )
    unsaid = {f"unsaid_{name}": value for name, value in residuals(unsaid_N2).items()}
    unsaid.pop("unsaid_bias")
    return {
        "kind": "fitted",
        "source": source,
        "command": COMMAND,
        "num_rows": len(said_N2),
        **residuals(said_N2),
        "ttft_bias": float(np.median(1 / said_N2[:, 0]) - 1),
        **unsaid,
        **values._asdict(),
    }
