"""Tokens to their experts and back: DeepEP's low-latency and normal kernels, as engines ship them,
and NVLink one-sided ones; fits the table ``exchange``.

Random choices (the benchmarks' own) are sent through the dispatch policies and topologies of the
simulator; what they put on the busiest rank and wire is priced with the formula of
:mod:`simulator.config.calibration.exchange`, as the simulator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import ANY, Calibration
from simulator.config.calibration.exchange import ExchangeFit
from simulator.validation import Answers, Measure
from simulator.validation.error_bands import Band
from simulator.validation.extrapolation import Doubt, of_hardware
from simulator.validation.hardware import find_calibrated
from simulator.validation.kernels import KernelFamily
from simulator.validation.kernels import _answering as answering
from simulator.validation.kernels._alltoall_fit import fit_tables
from simulator.validation.kernels._alltoall_tables import LAYOUTS, Part, measures_of, parts_of
from simulator.validation.kernels._answering import Estimate
from simulator.validation.kernels._fitting import Tables

_OWNERS = {"low_latency": ("sglang", ANY, "nan"), "normal": ("sglang", ANY, "nan")}
"""Engines that kernels were measured with, where the kernels' name does not say it."""
_NOTIFY_WIDER = 4.0
"""Widening, in log space, of the transfer's band to that of telling how much will come, where it
has none of its own: it holds ranks' waits for each other."""


class Alltoall(KernelFamily):
    """Exchanges between ranks and experts."""

    columns = ()
    layouts = LAYOUTS
    measures = ()
    calibrates = "exchange"
    sources = (
        "deepep_low_latency.csv.gz",
        "deepep_normal.csv.gz",
        "moe_alltoall.csv.gz",
        "published/alltoall.csv",
    )

    def measures_of(self, table: pd.DataFrame, where: str = "table") -> tuple[Measure, ...]:
        return measures_of(table, where)

    def answer(self, table: pd.DataFrame) -> Answers:
        answers = Answers.make_unsupported(len(table), len(self.measures_of(table)))
        for part in parts_of(table):
            _answer(answers, part)
        return answers

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        return fit_tables(tables)


def _answer(answers: Answers, part: Part) -> None:
    found = find_calibrated(part.gpu, part.engine)
    kernels: dict[Any, ExchangeFit] = found[1].exchange.get(part.kernels, {}) if found else {}
    fit = kernels.get(part.operation)
    reasons: Any = part.moves.wrong
    if fit is None:
        reasons = _why_no_fit(part, found[1] if found else None)
    operation = f" {part.operation}" if part.is_whole_row else ""
    group = f"{part.gpu} {part.engine} {part.kernels}{operation}"
    is_known = answering.name_group(answers, part.places, group, reasons)
    if found is not None and fit is not None and is_known.any():
        part = part._replace(places=part.places[is_known], moves=part.moves.take(is_known))
        answering.fill(answers, part.places, _estimate(part, fit, found[0]), part.measure)


def _estimate(part: Part, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Estimate:
    load, band = part.moves.load, Band.from_fit(fit)
    seconds = part.moves.transfer_s(fit, accelerator)
    if part.is_notify:
        seconds = part.moves.notify_s(fit, accelerator)
        band = Band(*fit.notify_band) if fit.notify_band else band.widen(_NOTIFY_WIDER)
    doubts = [Doubt(part.guess)] if part.guess else []
    doubts += of_hardware(fit, accelerator, f"{part.kernels} kernels")
    if fit.kind != "assumed" and part.engine not in _OWNERS.get(part.kernels, (part.engine,)):
        doubts.append(Doubt(f"these kernels were not measured as {part.engine} calls them"))
    quantities = {
        "tokens": np.asarray(load.tokens),
        "vector_bytes": np.asarray(load.vector_bytes),
        "experts": np.asarray(load.num_experts),
        "nodes": np.asarray(load.num_nodes),
        "ranks": part.moves.num_ranks,
    }
    return Estimate(seconds, fit, doubts, quantities, band=band)


def _why_no_fit(part: Part, calibration: Calibration | None) -> str:
    """Why nothing is known of a part's kernels, and what is known instead."""
    if calibration is None:
        return answering.unknown_gpu(part.gpu)
    known = calibration.exchange.get(part.kernels)
    if known is None:
        what = "constants for the kernels"
        return answering.unknown_name(what, part.kernels, list(calibration.exchange))
    return f"{part.kernels} kernels have no operation '{part.operation}'; known: {', '.join(known)}"
