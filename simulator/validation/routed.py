"""Tables of routed experts, row by row: shapes, the rows of every expert of the timed rank, and
what the simulator asks for a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import (
    FEW_EXPERTS,
    CalibrationFile,
    GroupedGemmFit,
    load_calibration,
)
from simulator.cost.kernels.grouped_gemm import Load, Operands, moves_s, product_s
from simulator.validation import OK, Answers
from simulator.validation.error_bands import Band
from simulator.validation.extrapolation import Doubt, no_narrower, of_hardware, outside_of, settle
from simulator.validation.hardware import calibrated, seen
from simulator.validation.sizes import MOST_CHOICES, MOST_EXPERTS, MOST_RANKS, numbers, refusals

TILE_ROWS = (8, 16, 32, 64, 128, 256)
"""All that any fit may name."""
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
"""Names in tables, and here."""


SHAPES = ("hidden_size", "inter_size", "moe_tp_size")
DOMAIN = ("num_tokens", "experts", "ranks", "hidden", "width")
"""What the domain of a fit is told by."""
NOT_WHOLE = "a size is missing or below 1"
_MOST = {
    "num_experts": MOST_EXPERTS,
    "num_slots": MOST_EXPERTS,
    "topk": MOST_CHOICES,
    "moe_ep_size": MOST_RANKS,
}


@dataclass(frozen=True)
class Layers:
    """One expert layer a table row; arrays are ``[n]``, loads ``[n, D]`` with a column a draw."""

    hidden: NDArray[np.float64]
    width: NDArray[np.float64]
    """Of an expert on this rank."""
    up_features: NDArray[np.float64]
    """What the first kernel computes: gate and value, or one of them where there is no gate."""
    choices: NDArray[np.float64]
    """Token-expert pairs of all tokens that the rank sees, ``[n, D]``."""
    load: Load
    sizes: dict[str, NDArray[np.float64]]
    """What the domain of a fit is told by, ``[n]`` each."""

    @classmethod
    def build(
        cls,
        table: pd.DataFrame,
        shapes_3: NDArray[np.float64],
        is_whole: NDArray[np.bool_],
        choices: NDArray[np.float64],
        load: Load,
        sizes: dict[str, NDArray[np.float64]],
    ) -> Layers:
        """From a table's :data:`SHAPES` and what else is known of its rows; a column ``is_gated``
        says which experts have a gate.
        """
        hidden, inter, tp = np.where(is_whole, shapes_3, 1.0)
        width = np.ceil(inter / tp)
        gated = (
            table["is_gated"].map(_is_true).to_numpy()
            if "is_gated" in table.columns
            else np.ones(len(table), dtype=bool)
        )
        sizes = {**sizes, "hidden": hidden, "width": width}
        return cls(hidden, width, width * np.where(gated, 2.0, 1.0), choices, load, sizes)

    def of(self, places: NDArray[np.intp] | NDArray[np.bool_]) -> Layers:
        """Some of the rows."""
        load = Load(
            self.load.rows[places],
            self.load.touched[places],
            self.load.slots[places],
            {size: tiles[places] for size, tiles in self.load.tiles.items()},
        )
        sizes = {name: values[places] for name, values in self.sizes.items()}
        return Layers(
            self.hidden[places],
            self.width[places],
            self.up_features[places],
            self.choices[places],
            load,
            sizes,
        )

    def averaged(self) -> Layers:
        """The same with the mean of the draws as the only draw."""
        load = Load(
            _mean(self.load.rows),
            _mean(self.load.touched),
            _mean(self.load.slots),
            {size: _mean(tiles) for size, tiles in self.load.tiles.items()},
        )
        return Layers(
            self.hidden, self.width, self.up_features, _mean(self.choices), load, self.sizes
        )

    def seconds(
        self, accelerator: AcceleratorSpec, fit: GroupedGemmFit, dtype: str
    ) -> NDArray[np.float64]:
        """What the simulator prices for each layer, ``[n]``: two kernels and the passes around
        them, mean over the draws.
        """
        operands = Operands.from_format(accelerator, fit, dtype)
        hidden, width = self.hidden[:, None], self.width[:, None]
        up_s = product_s(
            accelerator, fit, self.load, hidden, self.up_features[:, None], operands, self.choices
        )
        down_s = product_s(accelerator, fit, self.load, width, hidden, operands, self.choices)
        around_s = moves_s(accelerator, fit, self.load.rows, self.choices, hidden, width)
        return np.asarray((up_s + down_s + around_s).mean(axis=1))


def _mean(values_nD: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values_nD.mean(axis=1, keepdims=True))


def loads(codes: NDArray[np.intp], rows_of: list[NDArray[np.float64]], num_draws: int) -> Load:
    """The loads of table rows, ``[n, D]``, of which several share a case.

    Args:
        codes: place of each table row's case in ``rows_of``.
        rows_of: rows ``[D, G]`` of each case, or ``[1, G]`` where nothing is drawn.
    """
    found = [Load.from_rows(rows_DG, TILE_ROWS) for rows_DG in rows_of]

    def column(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        table = (
            np.stack([np.broadcast_to(value, num_draws) for value in values])
            if values
            else np.zeros((0, num_draws))
        )
        return table[codes]

    return Load(
        column([load.rows for load in found]),
        column([load.touched for load in found]),
        column([load.slots for load in found]),
        {size: column([load.tiles[size] for load in found]) for size in TILE_ROWS},
    )


def columns(table: pd.DataFrame, names: tuple[str, ...]) -> NDArray[np.float64]:
    """Some columns' numbers, one line a column; not a number where there is none."""
    return np.stack(
        [pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float) for name in names]
    )


def read_sizes(
    table: pd.DataFrame, names: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_]]:
    """Columns ``names`` and :data:`SHAPES`, ``[c, n]`` each and 1 where they are wrong, and why
    each row has no layer, or ``""``.
    """
    found = numbers(table, (*names, *SHAPES))
    wrong = refusals(found, most={name: limit for name, limit in _MOST.items() if name in found})
    values = np.where(wrong == "", np.stack(list(found.values())), 1.0)
    return values[: len(names)], values[len(names) :], wrong


def _is_true(value: object) -> bool:
    return str(value).strip().lower() in ("true", "1", "1.0", "yes")


def price(table: pd.DataFrame, kernels: list[str], layers: Layers, reasons: list[str]) -> Answers:
    """Answer every row.

    Args:
        kernels: the calibration's name for the engine of each row.
        reasons: why a row has no layer, or nothing.
    """
    answers = Answers.unsupported(len(table), 1)
    keys = pd.Series(
        list(zip(table["gpu"].map(str), kernels, table["moe_dtype"].map(str), strict=True)),
        dtype=object,
    )
    codes, found = pd.factorize(keys)
    for code, (gpu, engine, measured_as) in enumerate(found):
        _price_group(
            answers, np.flatnonzero(codes == code), layers, reasons, gpu, engine, measured_as
        )
    return answers


def _price_group(
    answers: Answers,
    places: NDArray[np.intp],
    layers: Layers,
    reasons: list[str],
    gpu: str,
    engine: str,
    measured_as: str,
) -> None:
    dtype = FORMATS.get(measured_as)
    found = calibrated(gpu, engine)
    whole = (
        f"no calibrated accelerator '{gpu}'"
        if found is None
        else ""
        if dtype
        else f"no number format '{measured_as}'; known: {', '.join(FORMATS)}"
    )
    for place in places:
        reason = whole or reasons[place]
        answers.group[place] = f"{gpu} {engine} {dtype or measured_as}"
        answers.status[place] = f"unsupported: {reason}" if reason else OK
    places = np.array([place for place in places if answers.status[place] == OK], dtype=np.intp)
    if found is None or not dtype or not len(places):
        return
    accelerator, calibration = found
    here = layers.of(places)
    for few in (None, FEW_EXPERTS):
        chosen = (here.sizes["experts"] <= FEW_EXPERTS) == (few is not None)
        if chosen.any():
            fit = calibration.experts(dtype, few)
            _price_kernels(
                answers, places[chosen], here.of(chosen), accelerator, fit, engine, dtype, few
            )


def _price_kernels(
    answers: Answers,
    places: NDArray[np.intp],
    here: Layers,
    accelerator: AcceleratorSpec,
    fit: GroupedGemmFit,
    engine: str,
    dtype: str,
    few: int | None,
) -> None:
    seconds = here.seconds(accelerator, fit, dtype)
    doubts = of_hardware(fit, accelerator, f"{dtype} experts", dtype) + _doubts(
        fit, _file(accelerator.calibration), engine, dtype
    )
    statuses, wider = settle(len(places), doubts, outside_of(fit, **here.sizes))
    low, high = Band.of(fit).spread(seconds, wider)
    if fit.kind == "assumed":
        like = seen().on(engine).experts(dtype, few)
        low, high = no_narrower(
            (low, high),
            seconds,
            like,
            _doubts(like, seen(), engine, dtype),
            outside_of(like, **here.sizes),
        )
    answers.seconds[places, 0], answers.low[places, 0], answers.high[places, 0] = seconds, low, high
    for place, status in zip(places, statuses, strict=True):
        answers.status[place] = status


def _doubts(fit: GroupedGemmFit, file: CalibrationFile, engine: str, dtype: str) -> list[Doubt]:
    own = file.grouped_gemm.get(engine, {})
    if fit.kind == "assumed" or fit in [own.get(name) for name in (dtype, f"{dtype}_few")]:
        return []
    return [Doubt(f"no measured {dtype} experts of engine '{engine}'")]


@cache
def _file(calibration: str) -> CalibrationFile:
    return load_calibration(calibration, calibration)
