"""Fits the tables ``grouped_gemm`` on layers of routed experts timed on H100 and B200, an entry for
each engine and format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import FEW_EXPERTS, GroupedGemmFit
from simulator.config.dtypes import DType
from simulator.validation.kernels import eplb, moe
from simulator.validation.routed import FORMATS, Layers

_TABLES = ("moe_grouped_gemm.csv.gz", "moe_wide_ep_sglang.csv.gz")
_EPLB = "moe_eplb_trtllm.csv.gz"
_SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
_COMMAND = "moesim calibrate published"
_GPUS = {"h100": ("hopper", "h100-sxm"), "b200": ("blackwell", "b200-sxm")}
_KEY = (
    "gpu",
    "engine",
    "phase",
    "moe_dtype",
    "hidden_size",
    "inter_size",
    "topk",
    "num_experts",
    "moe_tp_size",
    "moe_ep_size",
)
_SEED, _DIGITS, _SCALE = 7, 3, 0.08
"""Errors (of the logarithm) beyond the scale count linearly, not squared: draws of skewed loads
differ from those that were timed."""
_SEARCHED = 1000
"""Rows that a search looks at, drawn anew for each; errors are of all rows."""
_UNTUNED = ("h100", "fp8", "vllm")
"""GPU, format and engine of kernels that take five times as long as other engines': no model for an
engine that was not measured."""
_STEPS, _FEW_STEPS = 40, 12
"""Of a search, and of one that only tells sets of tiles apart."""
_COMPUTES_IN: dict[str, DType] = {"int4": "bf16", "mxfp4": "bf16"}
"""Weight-only formats."""
_TILES = ((16, 64), (16, 32, 64), (64, 128), (16, 32, 64, 128), (8, 16, 32, 64, 128, 256))
"""Sets of tiles among which a fit chooses: kernels with a fixed table of configurations, and those
that tune over many."""
_SHARED_TILES = (
    (8, 16, 32, 64),
    (8, 16, 32, 64, 128),
    (8, 16, 32, 64, 128, 256),
    (64, 128),
    (8, 64),
)
"""Likewise where a tile holds an expert's even share: launchers that round it up to a power of
two."""
_START = {
    "compute_fraction": 0.5,
    "memory_fraction": 0.85,
    "floor_s": 1e-5,
    "slot_s": 3e-8,
    "touched_s": 1e-8,
    "overlap": 3.0,
    "least_depth": 2048.0,
    "tile_reread": 40.0,
    "weight_reread": 0.1,
    "pair_passes": 1.0,
    "choice_passes": 0.2,
}
_BOUNDS = {
    "compute_fraction": (0.02, 0.98),
    "memory_fraction": (0.1, 0.98),
    "floor_s": (1e-6, 1e-3),
    "slot_s": (1e-11, 2e-6),
    "touched_s": (1e-11, 1e-5),
    "overlap": (1.2, 6.0),
    "least_depth": (64.0, 16384.0),
    "tile_reread": (1.0, 300.0),
    "weight_reread": (1e-3, 1.0),
    "pair_passes": (0.01, 10.0),
    "choice_passes": (3e-3, 5.0),
}
_LESS = 0.9
_BETTER = 0.85
"""Layers of few experts get an entry of their own where that leaves so much of the error: engines
run other kernels for them."""


class Tiling(NamedTuple):
    """How a kernel cuts the rows of an expert."""

    tile_rows: tuple[int, ...]
    tile_holds_share: bool

    @classmethod
    def of(cls, fit: GroupedGemmFit) -> Tiling:
        return cls(fit.tile_rows, fit.tile_holds_share)


_TILINGS = (
    *(Tiling(tiles, False) for tiles in _TILES),
    *(Tiling(tiles, True) for tiles in _SHARED_TILES),
)


@dataclass(frozen=True)
class _Rows:
    """Measured layers of one engine and format on one GPU."""

    accelerator: AcceleratorSpec
    dtype: str
    table: pd.DataFrame
    layers: Layers

    @property
    def measured_s(self) -> NDArray[np.float64]:
        return self.table["latency_ms"].to_numpy(dtype=float) / 1e3

    def of(self, places: NDArray[np.intp] | NDArray[np.bool_]) -> _Rows:
        return _Rows(self.accelerator, self.dtype, self.table.iloc[places], self.layers.of(places))

    def sample(self) -> _Rows:
        """At most so many of those that are fitted as a search looks at, each with the mean of its
        draws.
        """
        fitted = np.flatnonzero(self.table["is_fitted"].to_numpy())
        few = fitted[np.random.default_rng(_SEED).permutation(len(fitted))[:_SEARCHED]]
        return _Rows(
            self.accelerator, self.dtype, self.table.iloc[few], self.layers.of(few).averaged()
        )


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables ``grouped_gemm`` of ``hopper`` and ``blackwell``, by engine and format."""
    tables: dict[str, dict[str, Any]] = {}
    for gpu, kernels, rows in measured(folder):
        table = tables.setdefault(_GPUS[gpu][0], {}).setdefault(kernels, {})
        is_few = rows.layers.sizes["experts"] <= FEW_EXPERTS
        whole = _Solution.of(rows)
        parts = (
            []
            if kernels == "any" or not is_few.any() or is_few.all()
            else [_Solution.of(rows.of(~is_few)), _Solution.of(rows.of(is_few))]
        )
        apart = (
            np.abs(np.concatenate([part.error for part in parts])) if parts else np.array([np.inf])
        )
        if np.median(apart) < _BETTER * np.median(np.abs(whole.error)):
            table[rows.dtype], table[f"{rows.dtype}_few"] = (part.entry() for part in parts)
        else:
            table[rows.dtype] = whole.entry()
    for table in tables.values():
        bf16 = table["any"]["bf16"]
        table["any"]["other"] = _assumed(
            bf16, "As bf16: weight-only kernels reach less of the peaks; 10 % taken off", _LESS
        )
    return tables


def measured(folder: Path) -> list[tuple[str, str, _Rows]]:
    """GPU, kernels (an engine, or ``any``) and rows of everything that was measured."""
    table = pd.concat([pd.read_csv(folder / name) for name in _TABLES], ignore_index=True)
    table["phase"] = table["phase"].fillna("")
    # Of rows that were timed twice, with two kernels, the faster one is fitted, since engines
    # choose; both count as errors.
    key = [*_KEY, "distribution", "num_tokens", "engine_ver"]
    table["is_fitted"] = table.index.isin(table.groupby(key, dropna=False)["latency_ms"].idxmin())
    table["kernels"] = moe.kernels_of(table)
    rebalanced = pd.read_csv(folder / _EPLB)
    rebalanced["kernels"], rebalanced["phase"], rebalanced["engine"] = (
        eplb.kernels_of(rebalanced),
        "eplb",
        "trtllm",
    )
    rebalanced["is_fitted"] = True
    rebalanced["model"] = (
        rebalanced["hidden_size"].astype(str) + "x" + rebalanced["num_experts"].astype(str)
    )
    return [
        *_groups(table, moe.layers_of(table)[0]),
        *_groups(rebalanced, eplb.layers_of(rebalanced)[0]),
    ]


def _groups(table: pd.DataFrame, layers: Layers) -> list[tuple[str, str, _Rows]]:
    table["dtype"] = table["moe_dtype"].map(FORMATS)
    found = []
    for (gpu, dtype), here in table.groupby(["gpu", "dtype"]):
        accelerator = load_accelerator(_GPUS[str(gpu)][1], str(gpu))
        is_generic = (here["phase"] == "") & (
            (str(gpu), str(dtype)) != _UNTUNED[:2] or here["engine"] != _UNTUNED[2]
        )
        for kernels in [*(["any"] if is_generic.any() else []), *sorted(here["kernels"].unique())]:
            places = here.index[
                is_generic if kernels == "any" else here["kernels"] == kernels
            ].to_numpy()
            found.append(
                (
                    str(gpu),
                    kernels,
                    _Rows(accelerator, str(dtype), table.iloc[places], layers.of(places)),
                )
            )
    return found


@dataclass(frozen=True)
class _Solution:
    """A fit of some rows, and how far it is from them where what they have in common was left
    out.
    """

    rows: _Rows
    fit: GroupedGemmFit
    predicted: NDArray[np.float64]
    what: str
    """What was left out in turn."""

    @classmethod
    def of(cls, rows: _Rows) -> _Solution:
        found = search(rows, best_tiling(rows))
        shapes, what = folds(rows)
        predicted = np.empty(len(rows.table))
        for shape in np.unique(shapes):
            held = shapes == shape
            predicted[held] = seconds(
                search(rows.of(~held), Tiling.of(found), found), rows.of(held)
            )
        return cls(rows, found, predicted, what)

    @property
    def error(self) -> NDArray[np.float64]:
        return np.asarray(self.predicted / self.rows.measured_s - 1)

    def entry(self) -> dict[str, Any]:
        """For TOML."""
        rows, found, error = self.rows, self.fit, self.error
        low, high = np.quantile(rows.measured_s / self.predicted, [0.1, 0.9])
        engines = ", ".join(sorted(rows.table["engine"].unique()))
        models = max(len(rows.table["model"].dropna().unique()), 1)
        twice = (
            ""
            if rows.table["is_fitted"].all()
            else ", some by two kernels of which the faster is fitted"
        )
        text = (
            f"{len(rows.table):,} {rows.dtype} expert layers on {rows.accelerator.title}, {engines}"
        )
        return {
            "kind": "fitted",
            "source": (
                f"{text}, {models} model{'s' if models > 1 else ''}, balanced and skewed{twice}, "
                f"left out by {self.what}; {_SOURCE}"
            ),
            "command": _COMMAND,
            "num_rows": len(rows.table),
            "median_error": rounded(float(np.median(np.abs(error)))),
            "p90_error": rounded(float(np.quantile(np.abs(error), 0.9))),
            "bias": rounded(float(np.median(error))),
            "band": [rounded(float(low)), rounded(float(high))],
            "accelerator": rows.accelerator.name,
            **({"computes_in": found.computes_in} if found.computes_in else {}),
            **{name: getattr(found, name) for name in _START},
            "tile_rows": list(found.tile_rows),
            **({"tile_holds_share": True} if found.tile_holds_share else {}),
            "domain": {
                name: [int(values.min()), int(values.max())]
                for name, values in rows.layers.sizes.items()
            },
        }


def folds(rows: _Rows) -> tuple[NDArray[np.intp], str]:
    """What is left out together: a model; of one model alone, a split over ranks."""
    models = rows.table["model"].fillna("")
    codes, found = pd.factorize(models)
    if len(found) > 1:
        return codes, "model"
    splits = rows.table["moe_tp_size"].astype(str) + "x" + rows.table["moe_ep_size"].astype(str)
    return pd.factorize(splits)[0], "split over ranks, since there is one model"


def best_tiling(rows: _Rows) -> Tiling:
    """The set of tiles, and the rule that chooses among them, with which the rows are fitted
    best.
    """
    few = rows.sample()
    costs = [_solved(few, tiling, steps=_FEW_STEPS)[1] for tiling in _TILINGS]
    return _TILINGS[int(np.argmin(costs))]


def search(rows: _Rows, tiling: Tiling, start: GroupedGemmFit | None = None) -> GroupedGemmFit:
    """The coefficients that fit best, rounded."""
    return _solved(rows.sample(), tiling, start)[0]


def _solved(
    rows: _Rows, tiling: Tiling, start: GroupedGemmFit | None = None, steps: int = _STEPS
) -> tuple[GroupedGemmFit, float]:
    first = _START if start is None else {name: getattr(start, name) for name in _START}
    measured = np.log(rows.measured_s)

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(seconds(_built(rows, tiling, np.exp(logs)), rows)) - measured

    lowest, highest = np.log(np.array([_BOUNDS[name] for name in _START]).T)
    inside = np.clip(np.log(list(first.values())), lowest + 1e-6, highest - 1e-6)
    found = least_squares(
        errors, inside, bounds=(lowest, highest), loss="soft_l1", f_scale=_SCALE, max_nfev=steps
    )
    return _built(
        rows, tiling, np.array([rounded(value) for value in np.exp(found.x).tolist()])
    ), float(found.cost)


def _built(rows: _Rows, tiling: Tiling, values: NDArray[np.float64]) -> GroupedGemmFit:
    coefficients: dict[str, Any] = dict(zip(_START, values.tolist(), strict=True))
    return GroupedGemmFit.model_construct(
        kind="fitted",
        source="",
        computes_in=_COMPUTES_IN.get(rows.dtype),
        **tiling._asdict(),
        **coefficients,
    )


def seconds(fit: GroupedGemmFit, rows: _Rows) -> NDArray[np.float64]:
    """What the simulator prices."""
    return rows.layers.seconds(rows.accelerator, fit, rows.dtype)


def _assumed(entry: dict[str, Any], source: str, share: float) -> dict[str, Any]:
    kept = {name: value for name, value in entry.items() if name in (*_START, *Tiling._fields)}
    scaled = {name: rounded(kept[name] * share) for name in ("compute_fraction", "memory_fraction")}
    return {"kind": "assumed", "source": source, **kept, **scaled}


def rounded(value: float) -> float:
    """To so many digits that count."""
    return float(f"{value:.{_DIGITS}g}")
