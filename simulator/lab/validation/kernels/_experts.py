"""Tables of routed experts: shapes, the rows of every expert of the timed rank, what the simulator
asks for a layer, and fits, an entry of the table ``grouped_gemm`` for each engine and format.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats
from simulator.base.errors import UserError
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import (
    ANY,
    FEW_EXPERTS,
    Calibration,
    CalibrationFile,
    GroupedGemmFit,
    load_calibration,
)
from simulator.config.dtypes import DType
from simulator.cost.kernels.gemm import Operands
from simulator.cost.kernels.grouped_gemm import Load, moves_s, product_s
from simulator.lab.validation import Measure
from simulator.lab.validation.extrapolation import Doubt, of_hardware
from simulator.lab.validation.hardware import find_most_measured
from simulator.lab.validation.kernels import (
    SOURCE,
    Estimate,
    KernelFamily,
    Part,
    Places,
    group_rows,
    unknown_name,
    words,
)
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels._fitting import (
    GPUS,
    Entries,
    Groups,
    Search,
    Values,
    load_plan,
)
from simulator.lab.validation.kernels._power_law import NUM_DRAWS, Case, exponent
from simulator.lab.validation.sizes import MOST_CHOICES, MOST_EXPERTS, MOST_RANKS, numbers, refusals

_SEED = 7
"""Seed of the rows that a search looks at; any would do."""
_SEARCHED = 1000
"""Rows that a search looks at, drawn anew for each; errors are of all rows."""
_UNTUNED = ("h100", "fp8", "vllm")
"""GPU, format and engine of kernels that take five times as long as other engines': no model for an
engine that was not measured."""
_FEW_STEPS = 12
"""Evaluations of a search that only tells sets of tiles apart."""
_COMPUTES_IN: dict[str, DType] = {"int4": "bf16", "mxfp4": "bf16"}
"""Weight-only formats."""
_WEIGHT_ONLY_SHARE = 0.9
"""Share of what bf16 kernels reach of the peaks that weight-only kernels are assumed to reach."""
_BETTER = 0.85
"""Layers of few experts get an entry of their own where that leaves so much of the error: engines
run other kernels for them."""


_TILE_ROWS = (8, 16, 32, 64, 128, 256)
"""Rows of every tile that any fit may name."""
FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int4_wo": "int4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4_mxfp8",
}
"""Names in tables: the format here."""
SHAPES = ("hidden_size", "inter_size", "moe_tp_size")
_NOT_WHOLE = "a size is missing or below 1"
_MOST = {
    "num_experts": MOST_EXPERTS,
    "num_slots": MOST_EXPERTS,
    "topk": MOST_CHOICES,
    "moe_ep_size": MOST_RANKS,
}
"""Largest sizes by column, where they are not those of any column."""


class Layers(NamedTuple):
    """Expert layers, one a table row; arrays are ``[n]``, loads ``[n, D]`` with a column a draw."""

    hidden: Floats
    width: Floats
    """Width of an expert on this rank."""
    up_features: Floats
    """Features that the first kernel computes: gate and value, or one of them where there is no
    gate."""
    choices: Floats
    """Token-expert pairs of all tokens that the rank sees, ``[n, D]``."""
    load: Load
    sizes: dict[str, Floats]
    """Quantities of a fit's domain, ``[n]`` each."""

    def average_draws(self) -> Layers:
        """Replace the draws by their mean, as the only draw."""

        def mean(values_nD: Floats) -> Floats:
            return np.asarray(values_nD.mean(axis=1, keepdims=True))

        tiles = {size: mean(tiles) for size, tiles in self.load.tiles.items()}
        rows, touched, slots, _ = self.load
        load = Load(mean(rows), mean(touched), mean(slots), tiles)
        return self._replace(choices=mean(self.choices), load=load)

    def seconds(self, accelerator: AcceleratorSpec, fit: GroupedGemmFit, dtype: str) -> Floats:
        """Seconds ``[n]`` of two kernels and the passes around them, as the simulator prices a
        layer; mean over the draws.
        """
        operands = Operands.from_format(accelerator, dtype, fit.computes_in)
        hidden, width = self.hidden[:, None], self.width[:, None]
        up_s = product_s(
            accelerator, fit, self.load, hidden, self.up_features[:, None], operands, self.choices
        )
        down_s = product_s(accelerator, fit, self.load, width, hidden, operands, self.choices)
        around_s = moves_s(accelerator, fit, self.load.rows, self.choices, hidden, width)
        return np.asarray((up_s + down_s + around_s).mean(axis=1))


class Sizes(NamedTuple):
    """Sizes of table rows, ``[n]`` each and 1 where they are wrong."""

    by_name: Mapping[str, Floats]
    wrong: Sequence[str]
    """Why each row has no layer, or ``""``."""
    is_gated: Bools
    """Rows whose experts have a gate."""

    @classmethod
    def read(cls, table: pd.DataFrame, names: tuple[str, ...]) -> Sizes:
        """Read the columns ``names`` and :data:`SHAPES`; a column ``is_gated``, where there is
        one.
        """
        found = numbers(table, (*names, *SHAPES))
        wrong = refusals(found, most={name: most for name, most in _MOST.items() if name in found})
        gated = words(table, is_gated="true")["is_gated"].str.strip().str.lower()
        is_gated = gated.isin(("true", "1", "1.0", "yes")).to_numpy(bool)
        by_name = {name: np.where(wrong == "", values, 1.0) for name, values in found.items()}
        return cls(by_name, wrong.tolist(), is_gated)

    def keys(self, names: tuple[str, ...]) -> pd.DataFrame:
        """Columns of whole numbers, 0 where they are wrong."""
        is_whole = np.array([not why for why in self.wrong], dtype=bool)
        return pd.DataFrame({name: self.by_name[name] * is_whole for name in names}).astype(int)

    def layers(self, load: Load, choices: Floats) -> Layers:
        """Layers of these sizes under a load, given the token-expert pairs that each rank sees."""
        own = self.by_name
        width = np.ceil(own["inter_size"] / own["moe_tp_size"])
        domain = {
            "num_tokens": own["num_tokens"],
            "experts": own["num_experts"],
            "ranks": own["moe_ep_size"],
            "hidden": own["hidden_size"],
            "width": width,
        }
        features = width * np.where(self.is_gated, 2.0, 1.0)
        return Layers(own["hidden_size"], width, features, choices, load, domain)


def _load_of(codes: Places, rows_of: Sequence[Floats]) -> Load:
    """Loads ``[n, D]`` of table rows, of which several share a case.

    Args:
        codes: place of each table row's case in ``rows_of``.
        rows_of: rows ``[D, G]`` of each case, or ``[1, G]`` where nothing is drawn.
    """
    found = [Load.from_rows(rows_DG, _TILE_ROWS) for rows_DG in rows_of]

    def column(values: list[Floats]) -> Floats:
        table = np.zeros((len(values), NUM_DRAWS))
        for place, value in enumerate(values):
            table[place] = value
        return table[codes]

    return Load(
        column([load.rows for load in found]),
        column([load.touched for load in found]),
        column([load.slots for load in found]),
        {size: column([load.tiles[size] for load in found]) for size in _TILE_ROWS},
    )


class ExpertFamily(KernelFamily):
    """A rank's routed experts, both products and what is around them, a layer a row."""

    measures = (Measure("kernel", "latency_ms", 1e-3),)
    calibrates = "grouped_gemm"
    sizes: ClassVar[tuple[str, ...]] = ("num_tokens", "num_experts", "topk", "moe_ep_size")
    """Columns of sizes beside :data:`SHAPES`: these, and others behind them."""
    suffix: ClassVar[str] = ""
    """End of a distribution's name that says nothing of the distribution."""

    @abstractmethod
    def read(self, table: pd.DataFrame, sizes: Sizes) -> tuple[list[str], pd.DataFrame, Floats]:
        """Read the calibration's name for the engine of each row; columns that loads follow from,
        besides the first sizes and the distribution; and the tokens ``[n]`` that kernels see
        besides the rows of their experts.
        """

    @abstractmethod
    def draw(self, case: Case, *conditions: Any) -> Floats:
        """Rows of every slot of the timed rank, ``[D, G]``, one line a draw.

        Raises:
            UserError: if experts cannot be placed.
        """

    @abstractmethod
    def prepare(self, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """Put tables to fit together, with ``is_fitted`` (rows that a search may use),
        ``is_generic`` (rows that stand for engines that were not measured), ``engine`` and
        ``model``.
        """

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        kernels, layers, reasons = self._read_layers(table)
        is_few = layers.sizes["experts"] <= FEW_EXPERTS
        keys = words(table, "gpu", "moe_dtype").assign(kernels=kernels, is_few=is_few)
        for (gpu, measured_as, engine, few), places in group_rows(keys):
            dtype = FORMATS.get(measured_as, "")
            unknown = unknown_name("number format", measured_as, FORMATS)
            refused = [reasons[place] for place in places] if dtype else unknown
            price = partial(_estimate, layers, engine, dtype, FEW_EXPERTS if few else None)
            group = f"{gpu} {engine} {dtype or measured_as}"
            yield Part(places, gpu, engine, group, refused, price)

    def fit(self, tables: Sequence[pd.DataFrame]) -> Entries:
        table = self.prepare(tables)
        kernels, layers, _ = self._read_layers(table)
        return _fit_entries(table, layers, kernels)

    def _read_layers(self, table: pd.DataFrame) -> tuple[list[str], Layers, list[str]]:
        """Engines and layers of a table's rows, and for each why it has none, or nothing."""
        sizes, names = Sizes.read(table, self.sizes), ExpertFamily.sizes
        keys = sizes.keys(names).assign(distribution=table["distribution"].map(str).to_numpy())
        kernels, conditions, tokens = self.read(table, sizes)
        codes, found = pd.factorize(pd.MultiIndex.from_frame(keys.join(conditions)))
        drawn = [self._draw(*key) for key in found]
        load = _load_of(codes, [rows_DG for rows_DG, _ in drawn])
        choices = np.maximum(load.rows, (tokens * sizes.by_name["topk"])[:, None])
        reasons = [why or drawn[code][1] for why, code in zip(sizes.wrong, codes, strict=True)]
        return kernels, sizes.layers(load, choices), reasons

    def _draw(self, *key: Any) -> tuple[Floats, str]:
        """Rows of every slot; any, and the reason, where there is nothing to draw from."""
        num_tokens, num_experts, top_k, num_ranks, distribution, *conditions = key
        alpha, reason = exponent(distribution.removesuffix(self.suffix))
        case = Case(num_tokens, num_experts, top_k, num_ranks, alpha)
        if case.num_tokens < 1:
            reason = _NOT_WHOLE
        elif max(case.num_ranks, case.top_k) > case.num_experts:
            reason = f"{case.num_experts} experts on {case.num_ranks} ranks, {case.top_k} a token"
        if not reason:
            try:
                return self.draw(case, *conditions), ""
            except UserError as error:
                reason = str(error)
        return np.ones((1, 1)), reason


def _estimate(
    layers: Layers,
    engine: str,
    dtype: str,
    few: int | None,
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    places: Places,
) -> Estimate:
    layers = fitting.take(layers, places)
    fit = calibration.experts(dtype, few)
    similar = find_most_measured().choose_engine(engine).experts(dtype, few)
    file = load_calibration(accelerator.calibration, accelerator.calibration)
    hardware = of_hardware(fit, accelerator, f"{dtype} experts", dtype)
    return Estimate(
        layers.seconds(accelerator, fit, dtype),
        fit,
        hardware + _doubts(fit, file, engine, dtype),
        layers.sizes,
        similar=(similar, _doubts(similar, find_most_measured(), engine, dtype)),
    )


def _doubts(fit: GroupedGemmFit, file: CalibrationFile, engine: str, dtype: str) -> list[Doubt]:
    own = file.grouped_gemm.get(engine, {})
    if fit.kind == "assumed" or fit in [own.get(name) for name in (dtype, f"{dtype}_few")]:
        return []
    return [Doubt(f"no measured {dtype} experts of engine '{engine}'")]


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


class _Timed(NamedTuple):
    """Measured layers of one engine and format on one GPU."""

    accelerator: AcceleratorSpec
    dtype: str
    layers: Layers
    measured_s: Floats
    engine: NDArray[np.object_]
    model: NDArray[np.object_]
    """Name of the model, or nothing."""
    split: Groups
    """Split over ranks."""
    is_fitted: Bools
    """Rows that a search may use; the others only count in the errors."""

    def sample(self) -> _Timed:
        """Draw at most so many of the rows that are fitted as a search looks at, each with the mean
        of its draws.
        """
        fitted = np.flatnonzero(self.is_fitted)
        drawn = np.random.default_rng(_SEED).permutation(len(fitted))[:_SEARCHED]
        few = fitting.take(self, fitted[drawn])
        return few._replace(layers=few.layers.average_draws())

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

    def find(
        self, tiling: Tiling, start: Values, evaluations: int | None = None
    ) -> fitting.Solution:
        """Search for the coefficients with which a sample of the rows is fitted best."""
        few = self.sample()
        search = Search(
            load_plan("grouped_gemm"),
            few.measured_s,
            partial(few.build, tiling),
            lambda fit, _: few.seconds(fit),
            start,
        )
        return search.find(evaluations=evaluations)

    def folds(self) -> tuple[Groups, str]:
        """Rows that are left out together: a model's; of one model alone, a split's over ranks."""
        models, found = pd.factorize(self.model)
        if len(found) > 1:
            return models, "model"
        return self.split, "split over ranks, since there is one model"


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
        start = load_plan("grouped_gemm").begin("layer")
        costs = [timed.find(tiling, start, _FEW_STEPS).cost for tiling in _TILINGS]
        tiling = _TILINGS[int(np.argmin(costs))]
        values = timed.find(tiling, start).values

        def predict(seen: Bools, held: Bools) -> Floats:
            found = fitting.take(timed, seen).find(tiling, values).values
            return fitting.take(timed, held).seconds(timed.build(tiling, found))

        folds, left_out = timed.folds()
        return cls(timed, tiling, values, fitting.leave_out(folds, predict), left_out)

    @property
    def error(self) -> Floats:
        """Absolute relative error ``[n]``."""
        return np.abs(self.predicted / self.timed.measured_s - 1)

    def entry(self) -> dict[str, object]:
        """Entry of a calibration."""
        timed = self.timed
        engines = ", ".join(sorted(set(timed.engine)))
        models = max(len(set(timed.model) - {""}), 1)
        twice = ", some by two kernels of which the faster is fitted"
        source = (
            f"{len(timed.measured_s):,} {timed.dtype} expert layers on {timed.accelerator.title}, "
            f"{engines}, {models} model{'s' if models > 1 else ''}, balanced and skewed"
            f"{'' if timed.is_fitted.all() else twice}, left out by {self.left_out}; {SOURCE}"
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


def _fit_entries(table: pd.DataFrame, layers: Layers, kernels: list[str]) -> Entries:
    """Fit every engine and format of a table, and any engine where ``is_generic`` says so."""
    table = table.assign(dtype=table["moe_dtype"].map(FORMATS), kernels=kernels)
    found: Entries = {}
    for key, own in table.groupby(["gpu", "dtype"]):
        gpu, dtype = map(str, key)
        is_untuned = own["engine"].eq(_UNTUNED[2]) & ((gpu, dtype) == _UNTUNED[:2])
        is_generic = own["is_generic"] & ~is_untuned
        for engine in (ANY, *sorted(own["kernels"].unique())):
            some = own.index[is_generic if engine == ANY else own["kernels"] == engine].to_numpy()
            if not len(some):
                continue
            rows = table.iloc[some]
            timed = _Timed(
                fitting.accelerator_of(gpu),
                dtype,
                fitting.take(layers, some),
                rows["latency_ms"].to_numpy(dtype=float) / 1e3,
                rows["engine"].to_numpy(object),
                rows["model"].fillna("").to_numpy(object),
                rows.groupby(["moe_tp_size", "moe_ep_size"]).ngroup().to_numpy(),
                rows["is_fitted"].to_numpy(bool),
            )
            entries = found.setdefault(GPUS[gpu][0], {}).setdefault(engine, {})
            entries |= _fit_format(timed, may_split=engine != ANY)
    for engines in found.values():
        if bf16 := engines.get(ANY, {}).get("bf16"):
            why = "As bf16: weight-only kernels reach less of the peaks; 10 % taken off"
            names = (*load_plan("grouped_gemm").begin("layer"), *Tiling._fields)
            engines[ANY]["other"] = fitting.assume(bf16, why, names, _WEIGHT_ONLY_SHARE)
    return found


def _fit_format(timed: _Timed, *, may_split: bool) -> dict[str, dict[str, object]]:
    """Entries of one format: one for all layers, or one for those of few experts besides."""
    whole = _Solution.solve(timed)
    is_few = timed.layers.sizes["experts"] <= FEW_EXPERTS
    if may_split and is_few.any() and not is_few.all():
        parts = [
            _Solution.solve(fitting.take(timed, ~is_few)),
            _Solution.solve(fitting.take(timed, is_few)),
        ]
        apart = np.concatenate([part.error for part in parts])
        if np.median(apart) < _BETTER * np.median(whole.error):
            many, few = (part.entry() for part in parts)
            return {timed.dtype: many, f"{timed.dtype}_few": few}
    return {timed.dtype: whole.entry()}
