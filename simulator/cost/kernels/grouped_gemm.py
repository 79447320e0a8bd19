"""Routed experts of a rank: one kernel that multiplies each expert's rows by its own matrix, and
the passes around two such kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from simulator.base.arrays import Floats
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import GroupedGemmFit
from simulator.cost.kernels.gemm import Operands

_TILE_COLUMNS = 128
"""Columns of an output tile."""


class Load(NamedTuple):
    """Rows of the experts as far as prices depend on them; the arrays have one shape, an entry for
    each rank.
    """

    rows: Floats
    """Rows of all experts."""
    touched: Floats
    """Number of experts with rows."""
    slots: Floats
    """Number of experts, with rows or without."""
    tiles: dict[int, Floats]
    """Number of tiles by rows of a tile: each expert has its own, the last one not full."""

    @classmethod
    def from_rows(cls, rows_RG: Floats, tile_rows: tuple[int, ...]) -> Load:
        """Count the rows of the experts on the last axis."""
        rows = rows_RG.sum(axis=-1)
        tiles = {size: np.ceil(rows_RG / size).sum(axis=-1) for size in tile_rows}
        return cls(
            rows,
            (rows_RG > 0).sum(axis=-1).astype(np.float64),
            np.full(rows.shape, float(rows_RG.shape[-1])),
            tiles,
        )


def grouped_gemm_s(
    accelerator: AcceleratorSpec,
    fit: GroupedGemmFit,
    rows_RG: Floats,
    in_features: int,
    out_features: int,
    dtype: str,
    choices_R: Floats | None = None,
) -> Floats:
    """Seconds ``[R]`` of one kernel on each rank in which group ``g`` (an expert) has ``rows_RG[r,
    g]`` tokens; 0 without any.

    Args:
        choices_R: token-expert pairs of all tokens that each rank sees; absent = the rows alone.
    """
    load = Load.from_rows(rows_RG, fit.tile_rows)
    seen_R = load.rows if choices_R is None else choices_R
    return product_s(
        accelerator,
        fit,
        load,
        in_features,
        out_features,
        Operands.from_format(accelerator, dtype, fit.computes_in),
        seen_R,
    )


def product_s(
    accelerator: AcceleratorSpec,
    fit: GroupedGemmFit,
    load: Load,
    in_features: ArrayLike,
    out_features: ArrayLike,
    operands: Operands,
    choices: Floats,
) -> Floats:
    """Seconds of grouped products of any mixture of shapes: loads, choices and features are
    broadcast against each other.
    """
    k, n = np.asarray(in_features, dtype=np.float64), np.asarray(out_features, dtype=np.float64)
    bytes_per_s = accelerator.memory_bytes_per_s * fit.memory_fraction
    rate = operands.flops_per_s * fit.compute_fraction / accelerator.num_multiprocessors
    input_bytes = load.rows * (k * operands.input_bytes + n * 2.0)
    least = np.minimum(k, fit.least_depth)
    columns = np.ceil(n / _TILE_COLUMNS)
    busy_s = np.full(np.broadcast(load.rows, k, n).shape, np.inf)
    share = choices / np.maximum(load.slots, 1.0)
    for tile_rows in fit.tile_rows:
        tiles = load.tiles[tile_rows]
        depth = np.maximum(tiles * columns * (k / accelerator.num_multiprocessors), least)
        compute_s = depth * (
            2.0
            * tile_rows
            * _TILE_COLUMNS
            * _slowdown(fit.tile_reread, tile_rows, operands.feeding)
            / rate
        )
        read = load.touched + fit.weight_reread * (tiles - load.touched)
        memory_s = (read * (k * n * operands.weight_bytes) + input_bytes) / bytes_per_s
        longer_s, shorter_s = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
        tile_s = longer_s * (1 + (shorter_s / longer_s) ** fit.overlap) ** (1 / fit.overlap)
        if fit.tile_holds_share and tile_rows < max(fit.tile_rows):
            tile_s = np.where(share <= tile_rows, tile_s, np.inf)
        busy_s = np.minimum(busy_s, tile_s)
    floor_s = fit.floor_s + fit.slot_s * load.slots + fit.touched_s * load.touched
    return np.where(load.rows > 0, floor_s + busy_s, 0.0)


def moves_s(
    accelerator: AcceleratorSpec,
    fit: GroupedGemmFit,
    rows: ArrayLike,
    choices: ArrayLike,
    hidden_size: ArrayLike,
    width: ArrayLike,
) -> Floats:
    """Seconds of the activation between the two kernels, of sorting rows by expert, and of adding
    them up again.

    Args:
        rows: rows of the rank's experts.
        choices: token-expert pairs of all tokens that the rank sees, ``rows`` among them.
        width: inner width of an expert, or of the rank's part of it.
    """
    rows, choices = np.asarray(rows, dtype=np.float64), np.asarray(choices, dtype=np.float64)
    row_bytes = (3.0 * np.asarray(width) + 4.0 * np.asarray(hidden_size)) * 2.0
    passes = fit.pair_passes * rows + fit.choice_passes * choices
    moved_s = passes * row_bytes / (accelerator.memory_bytes_per_s * fit.memory_fraction)
    return np.where(rows > 0, moved_s, 0.0)


def _slowdown(reread: float, tile_rows: int, feeding: float) -> float:
    """Ratio of a small tile's time per result to that of one of 128 x 128; a multiprocessor with
    slower tensor cores waits less for operands.
    """
    slowdown = (1 + reread * (1 / tile_rows + 1 / _TILE_COLUMNS)) / (1 + reread * 2 / _TILE_COLUMNS)
    return max(min(slowdown, 1.0), slowdown * feeding)
