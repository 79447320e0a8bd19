"""Fits the table ``engine`` on serving points: the engine's own time, by engine and release.

Which requests share a step does not depend on how long steps take (a fixed number is in flight), so each point is simulated once and
its TTFT and TPOT are linear in the coefficients. What is reported of a fit is of points whose whole model or whole GPU was left out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.errors import UserError
from simulator.spec.accelerator import load_accelerator
from simulator.spec.model import ModelSpec
from simulator.sweep import sweep
from simulator.validation.fits import COMMAND
from simulator.validation.kernels._hardware import accelerator_name
from simulator.validation.serving import MEASURES, Group, groups
from simulator.validation.serving._answer import prepare
from simulator.validation.serving._load import sums

_TABLE = "serving_points.csv.gz"
_SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
_COEFFICIENTS = ("step_s", "sequence_s", "prompt_layer_s", "prompt_expert_layer_s", "first_token_s")
_START = np.array([1e-3, 2e-5, 5e-5, 5e-4, 2e-2])
_LARGEST = np.array([2e-2, 1e-3, 2e-3, 4e-3, 0.5])
_SCALE = 0.1
"""Errors (of the logarithm) beyond this count linearly: a point may have run in a way that its row does not say."""
_LEAST_ROWS = 20
"""An engine's release with fewer points is priced as the engine."""
_ANY = "any"


@dataclass(frozen=True)
class Points:
    """Simulated points, one row each."""

    engine: NDArray[np.object_]
    version: NDArray[np.object_]
    model: NDArray[np.object_]
    system: NDArray[np.object_]
    calibration: NDArray[np.object_]
    parts: NDArray[np.float64]
    """``[n, 2, 6]`` for TTFT and TPOT: seconds of kernels, and what each coefficient is multiplied with."""
    measured: NDArray[np.float64]
    """``[n, 2]`` seconds."""

    def where(self, chosen: NDArray[np.bool_]) -> Points:
        """Some of them."""
        return Points(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The table of every calibration that has serving points."""
    return fit_points(simulate(pd.read_csv(folder / _TABLE)))


def simulate(table: pd.DataFrame) -> Points:
    """Every aggregated point of a table that can be simulated."""
    made, _ = groups(table[table["mode"] == "agg"].reset_index(drop=True))
    table = table[table["mode"] == "agg"].reset_index(drop=True)
    rows: list[tuple[Any, ...]] = []
    for group, found in zip(made, sweep(_simulated, made), strict=True):
        for place, point, parts in zip(group.rows, group.points, found, strict=True):
            if parts is None:
                continue
            measured = [float(table[measure.column].iloc[place]) * measure.unit_s for measure in MEASURES]
            gpu = accelerator_name(point.system) or ""
            calibration = load_accelerator(gpu, point.system).calibration
            model = point.repository.rsplit("/", 1)[-1].replace("-R1", "-V3")  # one shape
            rows.append((point.engine, point.version, model, gpu, calibration, parts, measured))
    columns = [np.array(column, dtype=object) for column in list(zip(*rows, strict=True))[:5]]
    seconds = [np.array([row[place] for row in rows], dtype=float) for place in (5, 6)]
    return Points(columns[0], columns[1], columns[2], columns[3], columns[4], seconds[0], seconds[1])


def _simulated(group: Group) -> list[NDArray[np.float64] | None]:
    """``[2, 6]`` of every point of a group; ``None`` where it cannot be simulated."""
    found: list[NDArray[np.float64] | None] = []
    known: dict[object, NDArray[np.float64]] = {}
    for one in prepare(group.points):
        if isinstance(one.plan, str) or one.table is None:
            found.append(None)
            continue
        load = (one.point._replace(version="", repository="", is_dated=False), str(one.found.spec.scheduling))
        try:
            if load not in known:
                known[load] = _parts(sums(one.plan, one.table, one.point), one.plan.model, one.tokens_per_step)
            found.append(known[load])
        except UserError:
            found.append(None)
    return found


def _parts(terms: NDArray[np.float64], model: ModelSpec, tokens_per_step: float) -> NDArray[np.float64]:
    layers = terms[:, 3:] * np.array([model.num_layers, model.num_moe_layers])
    parts = np.concatenate([terms[:, :3], layers, np.array([[1.0], [0.0]])], axis=1)
    return np.asarray(parts / np.array([[1.0], [tokens_per_step]]))


def fit_points(points: Points) -> dict[str, dict[str, Any]]:
    """Coefficients of every engine and release, and how far off they are on models and GPUs that they were not fitted on."""
    ratios = cross_validated(points)
    fitted = _coefficients(points)
    tables: dict[str, dict[str, Any]] = {}
    for calibration in np.unique(points.calibration):
        entries = {}
        for key, values in fitted.items():
            chosen = _members(points, key)
            here = chosen & (points.calibration == calibration)
            entries[key] = _entry(key, values, int(chosen.sum()), ratios[:, here if here.sum() >= _LEAST_ROWS else chosen])
        tables[str(calibration)] = entries
    return tables


def cross_validated(points: Points) -> NDArray[np.float64]:
    """``[2, n, 2]`` predicted over measured, without the point's own model in the fit, and without its own GPU."""
    ratios = np.full((2, len(points.engine), 2), np.nan)
    for split, names in enumerate((points.model, points.system)):
        for name in np.unique(names):
            out = names == name
            ratios[split, out] = predicted(points.where(out), _coefficients(points.where(~out))) / points.measured[out]
    return ratios


def predicted(points: Points, fitted: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """``[n, 2]`` seconds."""
    values = np.array([fitted[_key(e, v, fitted)] for e, v in zip(points.engine, points.version, strict=True)])
    return np.asarray(np.einsum("nmk,nk->nm", points.parts, np.concatenate([np.ones((len(values), 1)), values], axis=1)))


def _key(engine: str, version: str, fitted: dict[str, NDArray[np.float64]]) -> str:
    own = [key for key in fitted if key.startswith(f"{engine}@") and version.startswith(key.partition("@")[2])]
    return max(own, key=len) if own else engine if engine in fitted else _ANY


def _members(points: Points, key: str) -> NDArray[np.bool_]:
    engine, _, version = key.partition("@")
    if key == _ANY:
        return np.ones(len(points.engine), dtype=bool)
    return np.array([e == engine and v.startswith(version) for e, v in zip(points.engine, points.version, strict=True)], dtype=bool)


def _coefficients(points: Points) -> dict[str, NDArray[np.float64]]:
    """Of any engine, of each engine, and of each release (the first two numbers of a version) with enough points."""
    keys = [_ANY]
    for engine in np.unique(points.engine):
        keys.append(str(engine))
        releases = [".".join(v.split(".")[:2]) for v in points.version[points.engine == engine] if v]
        keys += [f"{engine}@{r}" for r in sorted(set(releases)) if releases.count(r) >= _LEAST_ROWS]
    return {key: _fitted(points.where(_members(points, key))) for key in keys}


def _fitted(points: Points) -> NDArray[np.float64]:
    """Least squares on the logarithms of both latencies; each model on each GPU counts alike, however many points it has."""
    names = np.array([f"{m} {s}" for m, s in zip(points.model, points.system, strict=True)])
    _, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(np.sqrt(counts[place]))[:, None]
    log_measured = np.log(points.measured)

    def off(values: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.concatenate([[1.0], values * _START])
        return np.asarray(((np.log(points.parts @ whole) - log_measured) * weight).ravel())

    found = least_squares(off, np.ones(len(_START)), bounds=(0.0, _LARGEST / _START), loss="soft_l1", f_scale=_SCALE)
    return np.asarray(found.x * _START)


def _entry(key: str, values: NDArray[np.float64], num_rows: int, ratios: NDArray[np.float64]) -> dict[str, Any]:
    ratios = ratios.reshape(-1, 2)
    off = np.abs(ratios - 1)
    what = "all engines" if key == _ANY else key.replace("@", " ")
    found: dict[str, Any] = {
        "kind": "fitted",
        "source": f"{num_rows} serving points of {what}, time to first token and time per token, {_SOURCE}; "
        "cross-validated by leaving out each model and each GPU",
        "command": COMMAND,
        "num_rows": num_rows,
        "median_error": float(np.nanmedian(off[:, 1])),
        "p90_error": float(np.nanquantile(off[:, 1], 0.9)),
        "bias": float(np.nanmedian(ratios[:, 1] - 1)),
        "band": _band(ratios[:, 1]),
        "ttft_band": _band(ratios[:, 0]),
        "ttft_median_error": float(np.nanmedian(off[:, 0])),
        "ttft_p90_error": float(np.nanquantile(off[:, 0], 0.9)),
    }
    return found | dict(zip(_COEFFICIENTS, map(float, values), strict=True)) | {"layer_s": 0.0}


def _band(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """10th and 90th percentile of measured over predicted."""
    return float(np.nanquantile(1 / ratios, 0.1)), float(np.nanquantile(1 / ratios, 0.9))
