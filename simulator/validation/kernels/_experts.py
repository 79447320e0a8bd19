"""Tables of routed experts, row by row: shapes, the rows of every expert of the timed rank, and
what the simulator asks for a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import (
    FEW_EXPERTS,
    Calibration,
    CalibrationFile,
    GroupedGemmFit,
    load_calibration,
)
from simulator.cost.kernels.gemm import Operands
from simulator.cost.kernels.grouped_gemm import Load, moves_s, product_s
from simulator.validation import Answers
from simulator.validation.extrapolation import Doubt, of_hardware
from simulator.validation.hardware import find_calibrated, find_most_measured
from simulator.validation.kernels import _answering as answering
from simulator.validation.kernels._answering import Estimate, Places
from simulator.validation.kernels._fitting import Chosen, Floats
from simulator.validation.kernels._power_law import NUM_DRAWS
from simulator.validation.sizes import MOST_CHOICES, MOST_EXPERTS, MOST_RANKS, numbers, refusals

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
NOT_WHOLE = "a size is missing or below 1"
_MOST = {
    "num_experts": MOST_EXPERTS,
    "num_slots": MOST_EXPERTS,
    "topk": MOST_CHOICES,
    "moe_ep_size": MOST_RANKS,
}
"""Largest sizes by column, where they are not those of any column."""


@dataclass(frozen=True)
class Layers:
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

    def take(self, places: Places | Chosen) -> Layers:
        """Select some of the rows."""
        arrays = (self.hidden, self.width, self.up_features, self.choices)
        load = _change(self.load, lambda values: values[places])
        sizes = {name: values[places] for name, values in self.sizes.items()}
        hidden, width, features, choices = (values[places] for values in arrays)
        return Layers(hidden, width, features, choices, load, sizes)

    def average_draws(self) -> Layers:
        """Replace the draws by their mean, as the only draw."""

        def mean(values_nD: Floats) -> Floats:
            return np.asarray(values_nD.mean(axis=1, keepdims=True))

        return replace(self, choices=mean(self.choices), load=_change(self.load, mean))

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


def _change(load: Load, change: Callable[[Floats], Floats]) -> Load:
    """Change every array of a load."""
    tiles = {size: change(tiles) for size, tiles in load.tiles.items()}
    return Load(change(load.rows), change(load.touched), change(load.slots), tiles)


@dataclass(frozen=True)
class Sizes:
    """Sizes of table rows, ``[n]`` each and 1 where they are wrong."""

    by_name: Mapping[str, Floats]
    wrong: Sequence[str]
    """Why each row has no layer, or ``""``."""
    is_gated: Chosen
    """Rows whose experts have a gate."""

    @classmethod
    def read(cls, table: pd.DataFrame, names: tuple[str, ...]) -> Sizes:
        """Read the columns ``names`` and :data:`SHAPES`; a column ``is_gated``, where there is
        one.
        """
        found = numbers(table, (*names, *SHAPES))
        wrong = refusals(found, most={name: most for name, most in _MOST.items() if name in found})
        gated = answering.words(table, is_gated="true")["is_gated"].str.strip().str.lower()
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


def load_of(codes: Places, rows_of: Sequence[Floats]) -> Load:
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


def answer(
    table: pd.DataFrame, kernels: list[str], layers: Layers, reasons: Sequence[str]
) -> Answers:
    """Answer every row.

    Args:
        kernels: the calibration's name for the engine of each row.
        reasons: why a row has no layer, or nothing.
    """
    answers = Answers.make_unsupported(len(table), 1)
    keys = answering.words(table, "gpu", "moe_dtype").assign(kernels=kernels)
    for (gpu, measured_as, engine), places in answering.group_rows(keys):
        dtype, found = FORMATS.get(measured_as, ""), find_calibrated(gpu, engine)
        whole = answering.unknown_gpu(gpu) if found is None else ""
        if found and not dtype:
            whole = answering.unknown_name("number format", measured_as, FORMATS)
        group = f"{gpu} {engine} {dtype or measured_as}"
        own = [whole or reasons[place] for place in places]
        places = places[answering.name_group(answers, places, group, own)]
        is_few = layers.sizes["experts"][places] <= FEW_EXPERTS
        for few, some in ((None, places[~is_few]), (FEW_EXPERTS, places[is_few])):
            if found is not None and len(some):
                estimate = _estimate(*found, engine, dtype, few, layers.take(some))
                answering.fill(answers, some, estimate)
    return answers


def _estimate(
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    engine: str,
    dtype: str,
    few: int | None,
    layers: Layers,
) -> Estimate:
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
