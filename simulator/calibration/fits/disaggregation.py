"""Fits the table ``disaggregation`` on disaggregated serving points: what pools of workers add to
what their steps take.

Points that say how many workers they had give the prefill pool's two coefficients, by engine and
GPU family. Those that do not give what is assumed of them, by engine. What is reported of a fit is
of points whose whole GPU was left out; nearly all are of one model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.calibration.fits import COMMAND
from simulator.config.accelerator import load_accelerator
from simulator.parallel.workers import sweep
from simulator.validation.hardware import accelerator_name
from simulator.validation.serving import MEASURES, Group, groups
from simulator.validation.serving.answer import pools_or_reason
from simulator.validation.serving.deployments import deployment_of
from simulator.validation.serving.disagg import Load, Pools, serve

_TABLE = "serving_points.csv.gz"
_SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
_ANY, _POOLED = "any", ""
_RATIOS = tuple(float(ratio) for ratio in np.round(np.geomspace(0.5, 4.0, 22), 2))
_FIRST_TOKENS = tuple(float(seconds) for seconds in np.round(np.arange(0.0, 1.01, 0.02), 2))
_WORKERS = (1, 2, 3, 4, 6, 8)
"""Decode workers that are tried where the table does not say."""
_PULL = 1.5
"""How strongly a fit is drawn to the one above it, in errors of one point for each unit of the
coefficients' logarithms."""
_SHORT_S = 0.1
"""Times before the first token count as alike below it."""
_LEAST_ROWS = 12
"""Fewer points give no coefficients of their own."""


class Loaded(NamedTuple):
    """One point, ready to be answered with any coefficients."""

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


class Coefficients(NamedTuple):
    """What the table has of one engine on one GPU family."""

    prefill_ratio: float
    first_token_s: float
    unsaid_prefill_ratio: float
    unsaid_workers: int
    unsaid_drafts: float

    def predicted(self, point: Loaded) -> NDArray[np.float64]:
        """``[2]`` TTFT and TPOT."""
        pools = point.pools.get(self.unsaid_workers, next(iter(point.pools.values())))
        served = serve(pools, point.load, self.unsaid_drafts if pools.may_draft else 1.0)
        ratio = self.prefill_ratio if point.is_said else self.unsaid_prefill_ratio
        ttft_s = self.first_token_s + pools.transfer_s + served.waits_s + ratio * served.in_pool_s
        return np.array([ttft_s, served.token_s], dtype=float)


class Waits(NamedTuple):
    """Time to the first token of some points, seconds."""

    in_pool_N: NDArray[np.float64]
    """By waiting and steps alone."""
    other_N: NDArray[np.float64]
    measured_N: NDArray[np.float64]

    def where(self, chosen: NDArray[np.bool_]) -> Waits:
        """Some of them."""
        return Waits(self.in_pool_N[chosen], self.other_N[chosen], self.measured_N[chosen])

    def off(self, ratio: float, first_token_s: float) -> float:
        """Mean error of the logarithm."""
        predicted_N = self.in_pool_N * ratio + self.other_N + first_token_s
        return float(np.abs(np.log(predicted_N / self.measured_N)).mean())


Pair = tuple[float, float]
"""The ratio, and seconds before the first token."""


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The table of every calibration that has such points."""
    return fit_points(load_points(pd.read_csv(folder / _TABLE)))


def fit_points(points: list[Loaded]) -> dict[str, dict[str, Any]]:
    """Coefficients of every engine on every GPU family, and how far off they are on GPUs that they
    were not fitted on.
    """
    ratios_N2 = cross_validated(points)
    fitted = coefficients(points)
    tables: dict[str, dict[str, Any]] = {}
    for calibration in sorted({point.calibration for point in points}):
        tables[calibration] = {}
        for key in sorted({key for _, key in fitted}):
            said_N2, unsaid_N2 = (
                _judged(points, ratios_N2, is_said, calibration, key) for is_said in (True, False)
            )
            own = [
                point
                for point in points
                if key in (_ANY, point.engine) and point.calibration == calibration
            ]
            tables[calibration][key] = _entry(
                key, calibration, _of(fitted, calibration, key), said_N2, unsaid_N2
            ) | {
                "models": _often(point.model for point in points),
                "gpus": _often(point.gpu for point in own),
            }
    return tables


def _often(names: Iterable[str]) -> tuple[str, ...]:
    """Those with enough points."""
    return tuple(sorted(name for name, count in Counter(names).items() if count >= _LEAST_ROWS))


def load_points(table: pd.DataFrame) -> list[Loaded]:
    """Every disaggregated point of a table that can be simulated."""
    table = table[table["mode"] == "disagg"].reset_index(drop=True)
    made, _ = groups(table)
    found: list[Loaded] = []
    for group, pools in zip(made, sweep(_pools, made), strict=True):
        for place, point, some in zip(group.rows, group.points, pools, strict=True):
            if some:
                measured = [
                    float(table[measure.column].iloc[place]) * measure.unit_s
                    for measure in MEASURES
                ]
                gpu = accelerator_name(point.system) or ""
                calibration = load_accelerator(gpu, point.system).calibration
                model = deployment_of(point).spec.model
                found.append(
                    Loaded(
                        point.engine,
                        model,
                        gpu,
                        calibration,
                        Load.of(point),
                        some,
                        (measured[0], measured[1]),
                    )
                )
    return found


def _pools(group: Group) -> list[dict[int, Pools]]:
    """Of every point of a group; empty where it cannot be simulated."""
    found: list[dict[int, Pools]] = []
    for point in group.points:
        tried = (1,) if point.says_workers or point.prefill is None else _WORKERS
        made = (
            {workers: pools_or_reason(point, point.prefill, workers) for workers in tried}
            if point.prefill
            else {}
        )
        found.append(
            {workers: pools[0] for workers, pools in made.items() if not isinstance(pools, str)}
        )
    return found


def coefficients(points: list[Loaded]) -> dict[tuple[str, str], Coefficients]:
    """By calibration (``_POOLED`` for all) and engine: of all engines, of each, and of each on one
    GPU family with enough points.
    """
    engines = [_ANY, *sorted({point.engine for point in points})]
    pairs = _pairs([point for point in points if point.is_said])
    unsaid = [point for point in points if not point.is_said]
    found: dict[tuple[str, str], Coefficients] = {}
    for engine in engines:
        own = [point for point in unsaid if engine in (_ANY, point.engine)]
        if engine != _ANY and len(own) < _LEAST_ROWS:
            continue
        workers, drafts = _guessed(own)
        waits = _waits(own, workers, drafts)
        for calibration in (_POOLED, *sorted({point.calibration for point in points})):
            ratio, first_s = _nearest(pairs, calibration, engine)
            unsaid_ratio = min(_RATIOS, key=lambda ratio: waits.off(ratio, first_s))
            found[calibration, engine] = Coefficients(ratio, first_s, unsaid_ratio, workers, drafts)
    return found


def _of(fitted: dict[tuple[str, str], Coefficients], calibration: str, engine: str) -> Coefficients:
    places = ((calibration, engine), (_POOLED, engine), (calibration, _ANY), (_POOLED, _ANY))
    return next(fitted[place] for place in places if place in fitted)


def _pairs(points: list[Loaded]) -> dict[tuple[str, str], Pair]:
    """Of points that say their workers; each fit is drawn to the one above it."""
    waits = _waits(points)
    engine_N = np.array([point.engine for point in points])
    calibration_N = np.array([point.calibration for point in points])
    found = {(_POOLED, _ANY): _best(waits, None)}
    for engine in map(str, np.unique(engine_N)):
        if (engine_N == engine).sum() < _LEAST_ROWS:
            continue
        found[_POOLED, engine] = _best(waits.where(engine_N == engine), found[_POOLED, _ANY])
        for calibration in map(str, np.unique(calibration_N)):
            both_N = (engine_N == engine) & (calibration_N == calibration)
            if both_N.sum() >= _LEAST_ROWS:
                found[calibration, engine] = _best(waits.where(both_N), found[_POOLED, engine])
    return found


def _nearest(pairs: dict[tuple[str, str], Pair], calibration: str, engine: str) -> Pair:
    places = ((calibration, engine), (_POOLED, engine), (_POOLED, _ANY))
    return next(pairs[place] for place in places if place in pairs)


def _waits(points: list[Loaded], workers: int = 1, drafts: float = 1.0) -> Waits:
    found = []
    for point in points:
        pools = point.pools.get(workers, next(iter(point.pools.values())))
        served = serve(pools, point.load, drafts if pools.may_draft else 1.0)
        found.append((served.in_pool_s, pools.transfer_s + served.waits_s, point.measured[0]))
    return Waits(*np.array(found).reshape(-1, 3).T)


def _best(waits: Waits, above: Pair | None) -> Pair:
    """Least mean error of the logarithm of the time to the first token, over all pairs of
    coefficients.
    """
    found: list[tuple[float, Pair]] = []
    for ratio in _RATIOS:
        for first_s in _FIRST_TOKENS:
            off = waits.off(ratio, first_s)
            if above is not None:
                away = abs(np.log(ratio / above[0])) + abs(
                    np.log((first_s + _SHORT_S) / (above[1] + _SHORT_S))
                )
                off += _PULL / len(waits.measured_N) * float(away)
            found.append((off, (ratio, first_s)))
    return min(found)[1]


def _guessed(points: list[Loaded]) -> tuple[int, float]:
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


def cross_validated(points: list[Loaded]) -> NDArray[np.float64]:
    """``[N, 2]`` predicted over measured TTFT and TPOT of points, each GPU left out in turn."""
    ratios_N2 = np.full((len(points), 2), np.nan)
    for gpu in sorted({point.gpu for point in points}):
        fitted = coefficients([point for point in points if point.gpu != gpu])
        for place, point in enumerate(points):
            if point.gpu == gpu:
                ratios_N2[place] = (
                    _of(fitted, point.calibration, point.engine).predicted(point) / point.measured
                )
    return ratios_N2


def _judged(
    points: list[Loaded], ratios_N2: NDArray[np.float64], is_said: bool, calibration: str, key: str
) -> NDArray[np.float64]:
    """Of an entry's points on its GPUs; where those are few, of all of its engine's."""
    of_key = np.array(
        [point.is_said == is_said and key in (_ANY, point.engine) for point in points]
    )
    here = of_key & np.array([point.calibration == calibration for point in points])
    return np.asarray(ratios_N2[here if here.sum() >= _LEAST_ROWS else of_key])


def _entry(
    key: str,
    calibration: str,
    values: Coefficients,
    said_N2: NDArray[np.float64],
    unsaid_N2: NDArray[np.float64],
) -> dict[str, Any]:
    what = "all engines" if key == _ANY else key
    off, unsaid_off = np.abs(said_N2 - 1), np.abs(unsaid_N2 - 1)
    return {
        "kind": "fitted",
        "source": (
            f"{len(said_N2)} disaggregated serving points of {what} that say their workers "
            f"and {len(unsaid_N2)} that do not, {calibration} or, where those are few, "
            f"all GPUs, {_SOURCE}; cross-validated by leaving out each GPU, nearly all being "
            "of one model, DeepSeek-V3"
        ),
        "command": COMMAND,
        "num_rows": len(said_N2),
        "median_error": float(np.median(off[:, 1])),
        "p90_error": float(np.quantile(off[:, 1], 0.9)),
        "bias": float(np.median(said_N2[:, 1] - 1)),
        "band": _band(said_N2[:, 1]),
        "ttft_band": _band(said_N2[:, 0]),
        "ttft_median_error": float(np.median(off[:, 0])),
        "ttft_p90_error": float(np.quantile(off[:, 0], 0.9)),
        "unsaid_band": _band(unsaid_N2[:, 1]),
        "unsaid_ttft_band": _band(unsaid_N2[:, 0]),
        "unsaid_median_error": float(np.median(unsaid_off[:, 1])),
        "unsaid_p90_error": float(np.quantile(unsaid_off[:, 1], 0.9)),
        "unsaid_ttft_median_error": float(np.median(unsaid_off[:, 0])),
        "unsaid_ttft_p90_error": float(np.quantile(unsaid_off[:, 0], 0.9)),
    } | values._asdict()


def _band(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """10th and 90th percentile of measured over predicted."""
    return float(np.quantile(1 / ratios, 0.1)), float(np.quantile(1 / ratios, 0.9))
