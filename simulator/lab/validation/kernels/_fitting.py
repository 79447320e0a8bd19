"""Least squares in logarithms, leaving out, and the entry that both give a calibration: one way for
all families of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.optimize import least_squares

from simulator.base.arrays import Bools, Floats
from simulator.base.frozen import Frozen, validate
from simulator.base.reading import read_toml
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import ANY
from simulator.lab.validation.kernels import COMMAND

GPUS = {"h100": ("hopper", "h100-sxm"), "b200": ("blackwell", "b200-sxm")}
"""Calibration and accelerator of the GPUs that were timed, by their names in tables."""
_SEED = 7
"""Seed of the parts that shapes are drawn into; any would do."""
_DIGITS = 3
"""Significant digits of a coefficient: fits on other samples of the rows differ in the third."""
_MARGIN = 1e-6
"""Least distance of a start from its bounds, in logarithms: on a bound a search does not move."""

Entries = dict[str, dict[str, dict[str, dict[str, object]]]]
"""Entries of one table of calibrations: by calibration, engine and name."""
Groups = NDArray[np.integer]
"""Number of each row's group, from 0."""
Values = dict[str, float]
"""Coefficients by name."""
AnyFit = TypeVar("AnyFit")
Rows = TypeVar("Rows")
Key = TypeVar("Key")


class Wanted(Frozen):
    """An entry of a calibration that is to be fitted."""

    gpu: str = ""
    """Name of the GPU in tables; absent = any."""
    engine: str = ANY
    """Engine whose entry it is."""
    name: str
    """Name of the entry."""
    rows: dict[str, str | bool]
    """Values of columns that tell its rows."""
    search: Annotated[tuple[str, ...], Field(strict=False)]
    """Coefficients, or sets of them, that are searched for, by their names in ``start``."""
    given: dict[str, Any] = {}
    """Fields that are known."""
    floor_of: str = ""
    """Entry for any engine whose ``floor_s`` is taken, where there is one."""
    what: str = ""
    """Kernels in words."""

    def find_rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Find its rows of a table."""
        chosen = table["gpu"] == self.gpu
        for name, value in self.rows.items():
            chosen &= table[name] == value
        return table[chosen].reset_index(drop=True)


class FitPlan(Frozen):
    """A file beside a family of kernels: the entries that it fits, and how."""

    scale: float
    """Error of the logarithm beyond which errors count linearly, not squared: tables hold single
    readings that are off by two times."""
    step: float | None = None
    """Relative step of the numeric derivative; absent = SciPy's."""
    evaluations: int | None = None
    """Evaluations after which a search stops; absent = SciPy's."""
    folds: int = 0
    """Parts of the shapes, each of which is left out once."""
    bounds: dict[str, Annotated[tuple[float, float], Field(strict=False)]] = {}
    """Least and largest value of a coefficient, by the last word of its name."""
    free: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Coefficients that may have any value."""
    far: Annotated[tuple[float, float], Field(strict=False)] = (1e-6, 1e4)
    """Factors on a start beyond which a coefficient without bounds is not searched."""
    start: dict[str, float | dict[str, float]]
    """Coefficients, or sets of them, with the values where a search begins."""
    entries: Annotated[tuple[Wanted, ...], Field(strict=False)] = ()
    """Entries, in the order in which they are fitted."""

    def begin(self, *names: str) -> Values:
        """Start of a search for some coefficients or sets of them, one after the other."""
        found: Values = {}
        for name in names:
            one = self.start[name]
            found |= one if isinstance(one, dict) else {name: one}
        return found

    def bounds_of(self, name: str, start: float) -> tuple[float, float]:
        """Find the least and largest value of a coefficient."""
        if name in self.free:
            return 0.0, np.inf
        least, most = self.far
        return self.bounds.get(name.rpartition(" ")[2], (start * least, start * most))


@cache
def load_plan(name: str) -> FitPlan:
    """Read a file of this folder."""
    path = Path(__file__).with_name(f"{name}.toml")
    return validate(FitPlan, read_toml(path), str(path))


def fit_plan(
    plan: FitPlan,
    table: pd.DataFrame,
    fit_entry: Callable[[Wanted, pd.DataFrame, dict[str, Any]], dict[str, object]],
) -> Entries:
    """Fit every entry of a plan that a table has rows of.

    Args:
        fit_entry: makes an entry of its rows, with the fields that are known.
    """
    found: Entries = {}
    for wanted in plan.entries:
        rows = wanted.find_rows(table)
        if rows.empty:
            continue
        engines = found.setdefault(GPUS[wanted.gpu][0], {})
        alone = engines.get(ANY, {}).get(wanted.floor_of)
        given = wanted.given | ({"floor_s": alone["floor_s"]} if alone else {})
        engines.setdefault(wanted.engine, {})[wanted.name] = fit_entry(wanted, rows, given)
    return found


class Solution(NamedTuple):
    """Coefficients that fit best, rounded, and what the search minimised."""

    values: Values
    cost: float


@dataclass(frozen=True)
class Search(Generic[AnyFit]):
    """Least squares over the logarithms of coefficients, on the logarithms of measured seconds."""

    plan: FitPlan
    measured_s: Floats
    build: Callable[[Values], AnyFit]
    """Fit of coefficients."""
    predict: Callable[[AnyFit, Bools], Floats]
    """Seconds of some rows."""
    start: Values
    """Coefficients that are searched for, and where."""
    finish: Callable[[Values], Values] = dict
    """Whatever is done to the coefficients that were found."""
    others: Sequence[Values] = ()
    """Other starts, of which the one that leads to the least is taken."""

    def find(
        self,
        rows: Bools | None = None,
        start: Values | None = None,
        evaluations: int | None = None,
    ) -> Solution:
        """Find the coefficients that fit some rows best, or all, from a start."""
        chosen = np.ones(len(self.measured_s), dtype=bool) if rows is None else rows
        start, log_measured = start or self.start, np.log(self.measured_s[chosen])

        def errors(logs: Floats) -> Floats:
            values = dict(zip(start, np.exp(logs).tolist(), strict=True))
            return np.asarray(np.log(self.predict(self.build(values), chosen)) - log_measured)

        bounds = [self.plan.bounds_of(name, value) for name, value in start.items()]
        with np.errstate(divide="ignore"):  # a bound of zero is none
            lowest, highest = np.log(np.array(bounds).T)
        first = np.clip(np.log(list(start.values())), lowest + _MARGIN, highest - _MARGIN)
        options: dict[str, Any] = {"diff_step": self.plan.step, "f_scale": self.plan.scale}
        options["max_nfev"] = evaluations or self.plan.evaluations
        best = least_squares(errors, first, bounds=(lowest, highest), loss="soft_l1", **options)
        found = zip(start, np.exp(best.x).tolist(), strict=True)
        return Solution({name: round_off(value) for name, value in found}, float(best.cost))

    def solve(self, rows: Bools | None = None, start: Values | None = None) -> AnyFit:
        """Fit some rows, or all."""
        starts = [start] if start else [self.start, *self.others]
        found = min((self.find(rows, one) for one in starts), key=lambda solution: solution.cost)
        return self.build(self.finish(found.values))

    def leave_out(self, groups: ArrayLike, start: Values | None = None) -> Floats:
        """Seconds ``[n]`` of every row by a fit without the row's group."""
        return leave_out(groups, lambda seen, held: self.predict(self.solve(seen, start), held))

    def entry(
        self,
        source: str,
        accelerator: AcceleratorSpec,
        shapes: Groups,
        domain: Mapping[str, ArrayLike],
        names: Collection[str],
        *,
        is_refined: bool = False,
    ) -> dict[str, object]:
        """Entry of a calibration, whole shapes left out in turn.

        Args:
            shapes: number of each row's shape, from 0.
            names: coefficients that are stated.
            is_refined: whether searches without a shape begin where the one on all rows ended.
        """
        fitted: Any = self.solve()
        coefficients: dict[str, Any] = {
            name: value.model_dump() if isinstance(value, Frozen) else value
            for name, value in fitted
            if name in names and value is not None
        }
        folds = make_folds(shapes, self.plan.folds)
        start = {name: coefficients[name] for name in self.start} if is_refined else None
        predicted = self.leave_out(folds, start)
        errors = residuals(self.measured_s, predicted, folds)
        return entry(source, accelerator, errors, **coefficients, domain=domain_of(domain))


def take(rows: Rows, chosen: Bools | NDArray[np.intp]) -> Rows:
    """Select some rows of columns: an array, or a tuple or mapping of arrays, of such tuples, and
    of what holds for all rows.
    """
    found: Any = rows
    if isinstance(rows, np.ndarray):
        found = rows[chosen]
    elif isinstance(rows, dict):
        found = {name: take(values, chosen) for name, values in rows.items()}
    elif isinstance(rows, tuple):
        found = type(rows)(*(take(values, chosen) for values in rows))
    return cast(Rows, found)


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of several columns like those of :func:`take`, one after the other; what holds for all
    rows is the first's.
    """
    first: Any = parts[0]
    found = first
    if isinstance(first, np.ndarray):
        found = np.concatenate(cast(Any, parts))
    elif isinstance(first, tuple):
        found = type(first)(*map(join, zip(*parts, strict=True)))
    return cast(Rows, found)


def gather(parts: Iterable[tuple[Key, Rows]]) -> dict[Key, Rows]:
    """Rows of the same key as one, in order of appearance."""
    found: dict[Key, list[Rows]] = {}
    for key, rows in parts:
        found.setdefault(key, []).append(rows)
    return {key: join(rows) for key, rows in found.items()}


def round_off(value: float) -> float:
    """Round to the digits that a coefficient is known to."""
    return float(f"{value:.{_DIGITS}g}")


def make_folds(shapes: Groups, num_folds: int) -> Groups:
    """Fold ``[n]`` of each row: whole shapes, numbered from 0, drawn into so many folds."""
    fold_of_shape = np.random.default_rng(_SEED).permutation(shapes.max() + 1) % num_folds
    return np.asarray(fold_of_shape[shapes])


def leave_out(groups: ArrayLike, predict: Callable[[Bools, Bools], Floats]) -> Floats:
    """Seconds ``[n]`` of every row by a fit without the row's group.

    Args:
        predict: from the rows to fit on and the rows to predict to seconds of the latter.
    """
    names = np.asarray(groups)
    predicted = np.full(len(names), np.nan)
    for name in np.unique(names):
        held = names == name
        predicted[held] = predict(~held, held)
    return predicted


def residuals(
    measured_s: Floats, predicted_s: Floats, groups: ArrayLike, band: list[float] | None = None
) -> dict[str, object]:
    """Errors of predictions by fits that had not seen the rows, and their 80 % band.

    Args:
        groups: of the rows, which were left out together.
        band: of the fit where it is not that of these errors.
    """
    error, ratios = predicted_s / measured_s - 1, measured_s / predicted_s
    return {
        "num_rows": len(error),
        "median_error": round_off(float(np.median(np.abs(error)))),
        "p90_error": round_off(float(np.quantile(np.abs(error), 0.9))),
        "bias": round_off(float(np.median(error))),
        "band": band or band_of(ratios),
        **_coverage(ratios, np.asarray(groups), band),
    }


def _coverage(ratios: Floats, groups: NDArray[Any], band: list[float] | None) -> dict[str, float]:
    """Share of rows inside their band, made of other groups' rows where none is given; nothing
    where there is one group.
    """
    inside = np.zeros(len(ratios), dtype=bool)
    for name in np.unique(groups):
        own = groups == name
        if band is None and own.all():
            return {}
        low, high = band or band_of(ratios[~own])
        inside[own] = (ratios[own] >= min(low, 1.0)) & (ratios[own] <= max(high, 1.0))
    return {"covered": round_off(float(inside.mean()))}


def band_of(ratios: Floats) -> list[float]:
    """10th and 90th percentile of measured over predicted seconds."""
    return [round_off(float(value)) for value in np.quantile(ratios, [0.1, 0.9])]


def entry(
    source: str, accelerator: AcceleratorSpec, errors: Mapping[str, object], **fields: object
) -> dict[str, object]:
    """Entry of a calibration: what it was fitted on, its errors, then its coefficients."""
    return {
        "kind": "fitted",
        "source": source,
        "accelerator": accelerator.name,
        "command": COMMAND,
        **errors,
        **fields,
    }


def assume(
    fitted: Mapping[str, Any], source: str, names: Sequence[str], share: float = 1.0
) -> dict[str, object]:
    """Entry that nothing was measured for: some fields of a fitted one, and a share of the peaks
    that it reaches.
    """
    kept = {name: value for name, value in fitted.items() if name in names}
    for name in ("compute_fraction", "memory_fraction"):
        kept[name] = round_off(kept[name] * share)
    return {"kind": "assumed", "source": source, **kept}


def domain_of(columns: Mapping[str, ArrayLike]) -> dict[str, list[int]]:
    """Smallest and largest of what was measured, by the names of a fit's domain."""
    return {name: [int(np.min(values)), int(np.max(values))] for name, values in columns.items()}


def accelerator_of(gpu: str) -> AcceleratorSpec:
    """Accelerator that a table of timings calls ``gpu``."""
    return load_accelerator(GPUS[gpu][1], gpu)
