"""Fits of routed experts, an entry of the table ``grouped_gemm`` for each engine and format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, FEW_EXPERTS, GroupedGemmFit
from simulator.config.dtypes import DType
from simulator.validation.kernels import SOURCE
from simulator.validation.kernels import _fitting as fitting
from simulator.validation.kernels._answering import Places
from simulator.validation.kernels._experts import FORMATS, Layers
from simulator.validation.kernels._fitting import GPUS, Chosen, Floats, Groups, Tables, Values

_SEED = 7
"""Seed of the rows that a search looks at; any would do."""
_SCALE = 0.08
"""Error of the logarithm beyond which errors count linearly: draws of skewed loads differ from
those that were timed."""
_SEARCHED = 1000
"""Rows that a search looks at, drawn anew for each; errors are of all rows."""
_UNTUNED = ("h100", "fp8", "vllm")
"""GPU, format and engine of kernels that take five times as long as other engines': no model for an
engine that was not measured."""
_STEPS, _FEW_STEPS = 40, 12
"""Evaluations of a search, and of one that only tells sets of tiles apart."""
_COMPUTES_IN: dict[str, DType] = {"int4": "bf16", "mxfp4": "bf16"}
"""Weight-only formats."""
_COEFFICIENTS = {
    "compute_fraction": (0.5, 0.02, 0.98),
    "memory_fraction": (0.85, 0.1, 0.98),
    "floor_s": (1e-5, 1e-6, 1e-3),
    "slot_s": (3e-8, 1e-11, 2e-6),
    "touched_s": (1e-8, 1e-11, 1e-5),
    "overlap": (3.0, 1.2, 6.0),
    "least_depth": (2048.0, 64.0, 16384.0),
    "tile_reread": (40.0, 1.0, 300.0),
    "weight_reread": (0.1, 1e-3, 1.0),
    "pair_passes": (1.0, 0.01, 10.0),
    "choice_passes": (0.2, 3e-3, 5.0),
}
"""Start of the search for a coefficient, and its least and largest value: they can stand in for
each other, and the ends of their trade are no machine."""
_START = {name: start for name, (start, _, _) in _COEFFICIENTS.items()}
_BOUNDS = {name: (least, most) for name, (_, least, most) in _COEFFICIENTS.items()}
_WEIGHT_ONLY_SHARE = 0.9
"""Share of what bf16 kernels reach of the peaks that weight-only kernels are assumed to reach."""
_BETTER = 0.85
"""Layers of few experts get an entry of their own where that leaves so much of the error: engines
run other kernels for them."""


class Tiling(NamedTuple):
    """Cuts of an expert's rows into tiles."""

    tile_rows: tuple[int, ...]
    tile_holds_share: bool = False
    """Whether a tile holds an expert's even share: launchers that round it up to a power of two."""


_TILINGS = (
    Tiling((16, 64)),
    Tiling((16, 32, 64)),
    Tiling((64, 128)),
    Tiling((16, 32, 64, 128)),
    Tiling((8, 16, 32, 64, 128, 256)),
    Tiling((8, 16, 32, 64), True),
    Tiling((8, 16, 32, 64, 128), True),
    Tiling((8, 16, 32, 64, 128, 256), True),
    Tiling((64, 128), True),
    Tiling((8, 64), True),
)
"""Sets of tiles among which a fit chooses: kernels with a fixed table of configurations, and those
that tune over many."""


@dataclass(frozen=True)
class _Timed:
    """Measured layers of one engine and format on one GPU."""

    accelerator: AcceleratorSpec
    dtype: str
    table: pd.DataFrame
    layers: Layers

    @property
    def measured_s(self) -> Floats:
        return self.table["latency_ms"].to_numpy(dtype=float) / 1e3

    def take(self, places: Places | Chosen) -> _Timed:
        """Select some of the rows."""
        return _Timed(
            self.accelerator, self.dtype, self.table.iloc[places], self.layers.take(places)
        )

    def sample(self) -> _Timed:
        """Draw at most so many of the rows that are fitted as a search looks at, each with the mean
        of its draws.
        """
        fitted = np.flatnonzero(self.table["is_fitted"].to_numpy())
        few = self.take(fitted[np.random.default_rng(_SEED).permutation(len(fitted))[:_SEARCHED]])
        return _Timed(few.accelerator, few.dtype, few.table, few.layers.average_draws())

    def seconds(self, fit: GroupedGemmFit) -> Floats:
        """Seconds ``[n]`` of the rows."""
        return self.layers.seconds(self.accelerator, fit, self.dtype)

    def build(self, tiling: Tiling, values: Values) -> GroupedGemmFit:
        """Fit of coefficients."""
        named: dict[str, Any] = tiling._asdict() | values
        computes_in = _COMPUTES_IN.get(self.dtype)
        return GroupedGemmFit.model_construct(
            kind="fitted", source="", computes_in=computes_in, **named
        )

    def solve(self, tiling: Tiling, start: Values, steps: int = _STEPS) -> fitting.Solution:
        """Search for the coefficients with which a sample of the rows is fitted best."""
        few = self.sample()
        return fitting.search(
            lambda values: few.seconds(few.build(tiling, values)),
            few.measured_s,
            start,
            _BOUNDS,
            _SCALE,
            max_nfev=steps,
        )

    def folds(self) -> tuple[Groups, str]:
        """Rows that are left out together: a model's; of one model alone, a split's over ranks."""
        models, found = pd.factorize(self.table["model"].fillna(""))
        if len(found) > 1:
            return models, "model"
        names = ["moe_tp_size", "moe_ep_size"]
        return self.table.groupby(names).ngroup().to_numpy(), (
            "split over ranks, since there is one model"
        )


@dataclass(frozen=True)
class _Solution:
    """A fit of some rows, and its predictions where what they have in common was left out."""

    timed: _Timed
    tiling: Tiling
    values: Values
    predicted: Floats
    left_out: str
    """Name of what was left out in turn."""

    @classmethod
    def solve(cls, timed: _Timed) -> _Solution:
        costs = [timed.solve(tiling, _START, _FEW_STEPS).cost for tiling in _TILINGS]
        tiling = _TILINGS[int(np.argmin(costs))]
        values = timed.solve(tiling, _START).values

        def predict(seen: Chosen, held: Chosen) -> Floats:
            found = timed.take(seen).solve(tiling, values).values
            return timed.take(held).seconds(timed.build(tiling, found))

        folds, left_out = timed.folds()
        return cls(timed, tiling, values, fitting.leave_out(folds, predict), left_out)

    @property
    def error(self) -> Floats:
        """Absolute relative error ``[n]``."""
        return np.abs(self.predicted / self.timed.measured_s - 1)

    def entry(self) -> dict[str, Any]:
        """Entry of a calibration."""
        timed, table = self.timed, self.timed.table
        engines = ", ".join(sorted(table["engine"].unique()))
        models = max(len(table["model"].dropna().unique()), 1)
        twice = ", some by two kernels of which the faster is fitted"
        source = (
            f"{len(table):,} {timed.dtype} expert layers on {timed.accelerator.title}, {engines}, "
            f"{models} model{'s' if models > 1 else ''}, balanced and skewed"
            f"{'' if table['is_fitted'].all() else twice}, left out by {self.left_out}; {SOURCE}"
        )
        computes_in = _COMPUTES_IN.get(timed.dtype)
        return fitting.entry(
            source,
            timed.accelerator,
            fitting.residuals(timed.measured_s, self.predicted, timed.folds()[0]),
            **({"computes_in": computes_in} if computes_in else {}),
            **self.values,
            tile_rows=self.tiling.tile_rows,
            **({"tile_holds_share": True} if self.tiling.tile_holds_share else {}),
            domain=fitting.domain_of(timed.layers.sizes),
        )


def fit_entries(table: pd.DataFrame, layers: Layers, kernels: list[str]) -> Tables:
    """Fit every engine and format of a table, and any engine where ``is_generic`` says so.

    Args:
        table: with ``is_fitted`` (rows that a search may use), ``is_generic`` (rows that stand for
            engines that were not measured) and ``model``.
        kernels: the calibration's name for the engine of each row.
    """
    table = table.assign(dtype=table["moe_dtype"].map(FORMATS), kernels=kernels)
    found: Tables = {}
    for key, own in table.groupby(["gpu", "dtype"]):
        gpu, dtype = map(str, key)
        is_untuned = own["engine"].eq(_UNTUNED[2]) & ((gpu, dtype) == _UNTUNED[:2])
        is_generic = own["is_generic"] & ~is_untuned
        for engine in (ANY, *sorted(own["kernels"].unique())):
            some = own.index[is_generic if engine == ANY else own["kernels"] == engine].to_numpy()
            if not len(some):
                continue
            timed = _Timed(fitting.accelerator_of(gpu), dtype, table.iloc[some], layers.take(some))
            entries = found.setdefault(GPUS[gpu][0], {}).setdefault(engine, {})
            entries |= _fit_format(timed, may_split=engine != ANY)
    for engines in found.values():
        if bf16 := engines.get(ANY, {}).get("bf16"):
            why = "As bf16: weight-only kernels reach less of the peaks; 10 % taken off"
            names = (*_START, *Tiling._fields)
            engines[ANY]["other"] = fitting.assume(bf16, why, names, _WEIGHT_ONLY_SHARE)
    return found


def _fit_format(timed: _Timed, *, may_split: bool) -> dict[str, dict[str, Any]]:
    """Entries of one format: one for all layers, or one for those of few experts besides."""
    whole = _Solution.solve(timed)
    is_few = timed.layers.sizes["experts"] <= FEW_EXPERTS
    if may_split and is_few.any() and not is_few.all():
        parts = [_Solution.solve(timed.take(~is_few)), _Solution.solve(timed.take(is_few))]
        apart = np.concatenate([part.error for part in parts])
        if np.median(apart) < _BETTER * np.median(whole.error):
            many, few = (part.entry() for part in parts)
            return {timed.dtype: many, f"{timed.dtype}_few": few}
    return {timed.dtype: whole.entry()}
