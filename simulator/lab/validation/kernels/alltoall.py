"""Tokens to their experts and back: DeepEP's low-latency and normal kernels, as engines ship them,
and NVLink one-sided ones; fits the table ``exchange``.

Random choices (the benchmarks' own) are sent through the dispatch policies and topologies of the
simulator; what they put on the busiest rank and wire is priced with the formula of
:mod:`simulator.config.calibration.communication`, as the simulator does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import ANY, Calibration
from simulator.config.calibration.communication import ExchangeFit
from simulator.lab.validation import Measure
from simulator.lab.validation.error_bands import Band
from simulator.lab.validation.extrapolation import Doubt, of_hardware
from simulator.lab.validation.hardware import find_calibrated
from simulator.lab.validation.kernels import SOURCE, KernelFamily
from simulator.lab.validation.kernels import _answering as answering
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels._answering import Estimate, Part, Places
from simulator.lab.validation.kernels._exchanges import (
    LAYOUTS,
    Exchanges,
    exchanges_of,
    measures_of,
)
from simulator.lab.validation.kernels._fitting import (
    Chosen,
    Floats,
    Search,
    Tables,
    Values,
    Wanted,
    load_plan,
)

_OWNERS = {"low_latency": ("sglang", ANY, "nan"), "normal": ("sglang", ANY, "nan")}
"""Engines that kernels were measured with, where the kernels' name does not say it."""
_NOTIFY_WIDER = 4.0
"""Widening, in log space, of the transfer's band to that of telling how much will come, where it
has none of its own: it holds ranks' waits for each other."""


_BLOG = "NVIDIA/TensorRT-LLM tech blog 18 (NVLinkOneSided, GB200 NVL72)"
_FAMILIES = {"h100-sxm": "hopper", "b200-sxm": "blackwell", "gb200": "blackwell"}
"""Calibration of each accelerator that was timed."""
_NOTHING = 2.0
"""A coefficient within this factor of its lower bound is none."""
_FEWEST_ROWS = 2
"""Rows for each coefficient that a fit without a shape must have more than."""
_FORWARDED = ("forward_byte_s", "crossing_byte_s")
_ACROSS = ("scale_out_latency_s", "latency_per_doubling_s", "scale_out_fraction", *_FORWARDED)
"""Coefficients that are searched for besides, where rows cross nodes."""
_ABSENT: dict[str, Any] = {
    **dict.fromkeys(("latency_s", "scale_out_latency_s", "latency_per_doubling_s"), 0.0),
    **dict.fromkeys(("scale_up_fraction", "scale_out_fraction"), 1.0),
}
"""Values of coefficients that are not searched for."""
_ASSUMED_ACROSS = {
    "scale_out_latency_s": 5e-5,
    "latency_per_doubling_s": 1e-5,
    "scale_out_fraction": 0.9,
}
"""Across nodes where no kernels of the library were timed on several: near what a combine of
Hopper's normal kernels takes."""
_NOTIFY = ("notify_s", "notify_per_doubling_s", "notify_token_s", "notify_fraction", "notify_band")
"""Fields of telling how much will come."""


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

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        for one in exchanges_of(table):
            operation = f" {one.operation}" if one.is_whole_row else ""
            group = f"{one.gpu} {one.engine} {one.kernels}{operation}"
            price = partial(_estimate, one)
            yield Part(one.places, one.gpu, one.engine, group, _refuse(one), price, one.measure)

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        """Fit ``hopper`` and ``blackwell``, by kernels and operation."""
        wanted = {(one.name, one.rows["operation"]): one for one in load_plan("alltoall").entries}
        timed: dict[tuple[str, str, str], dict[bool, list[Exchanges]]] = {}
        for one in itertools.chain(*map(exchanges_of, tables)):
            key = (one.accelerator or "", one.kernels, one.operation)
            if key[0] in _FAMILIES and key[1:] in wanted and not np.isnan(one.measured_s).all():
                timed.setdefault(key, {}).setdefault(one.is_notify, []).append(one)
        found: Tables = {}
        transfers = [key for key, rows in timed.items() if False in rows]
        for key in sorted(transfers, key=lambda key: list(_FAMILIES).index(key[0])):
            accelerator, kernels, operation = key
            rows = {is_notify: fitting.join(parts) for is_notify, parts in timed[key].items()}
            made = _fit_entry(wanted[kernels, operation], rows[False], rows.get(True))
            if made["domain"]["nodes"][1] == 1:
                made = _across_as(made, found.get("hopper", {}).get(kernels, {}).get(operation, {}))
            family = found.setdefault(_FAMILIES[accelerator], {})
            family.setdefault(kernels, {})[operation] = made
        if one_sided := found.get("blackwell", {}).get("one_sided"):
            found.setdefault("hopper", {})["one_sided"] = {
                operation: _assume_one_sided(entry) for operation, entry in one_sided.items()
            }
        return found


def _estimate(
    rows: Exchanges, accelerator: AcceleratorSpec, calibration: Calibration, places: Places
) -> Estimate:
    kernels: dict[Any, ExchangeFit] = calibration.exchange[rows.kernels]
    fit = kernels[rows.operation]
    rows = fitting.take(rows, np.isin(rows.places, places))
    seconds, band = rows.moves.transfer_s(fit, accelerator), Band.from_fit(fit)
    if rows.is_notify:
        seconds = rows.moves.notify_s(fit, accelerator)
        band = Band(*fit.notify_band) if fit.notify_band else band.widen(_NOTIFY_WIDER)
    doubts = [Doubt(rows.guess)] if rows.guess else []
    doubts += of_hardware(fit, accelerator, f"{rows.kernels} kernels")
    if fit.kind != "assumed" and rows.engine not in _OWNERS.get(rows.kernels, (rows.engine,)):
        doubts.append(Doubt(f"these kernels were not measured as {rows.engine} calls them"))
    return Estimate(seconds, fit, doubts, rows.domain, band=band)


def _refuse(rows: Exchanges) -> str | NDArray[np.object_]:
    """Why rows cannot be priced, one for all or one for each, and what is known instead."""
    found = find_calibrated(rows.gpu, rows.engine)
    if found is None:
        return answering.unknown_gpu(rows.gpu)
    known = found[1].exchange.get(rows.kernels)
    if known is None:
        what = "constants for the kernels"
        return answering.unknown_name(what, rows.kernels, list(found[1].exchange))
    if rows.operation in known:
        return rows.moves.wrong
    names = ", ".join(known)
    return f"{rows.kernels} kernels have no operation '{rows.operation}'; known: {names}"


def _fit_entry(wanted: Wanted, timed: Exchanges, told: Exchanges | None) -> dict[str, Any]:
    plan, accelerator = load_plan("alltoall"), load_accelerator(timed.accelerator or "", "fit")
    kernels, measured = wanted.given, timed.measured_s
    names = list(wanted.search)
    if timed.nodes.max() > 1:
        hides = kernels["overlap"] > 1
        names += [name for name in _ACROSS if hides or name not in _FORWARDED]
    usable = (timed.moves.wrong == "") & np.isfinite(measured) & ~timed.is_congested

    def build(values: Values) -> ExchangeFit:
        return ExchangeFit.model_construct(kind="fitted", source="", **kernels | _ABSENT | values)

    def finish(values: Values) -> Values:
        """Leave out coefficients at their lower bound."""
        return {
            name: value if "fraction" in name or value >= _NOTHING * plan.bounds[name][0] else 0.0
            for name, value in values.items()
        }

    def solve(chosen: Chosen) -> ExchangeFit:
        rows = fitting.take(timed, usable & chosen)
        start = plan.begin(*names)
        if "floor_s" in names:  # else a floor that hides every latency leaves nothing to search by
            logs = np.log(rows.measured_s)
            low, high = np.exp(np.quantile(logs, [0.2, 0.3])).tolist()
            usual = {"floor_s": low, "latency_s": high, "scale_up_fraction": 0.3}
            start |= {name: value for name, value in usual.items() if name in names}
        return Search(
            plan,
            rows.measured_s,
            build,
            lambda fit, _: rows.moves.transfer_s(fit, accelerator),
            start,
            finish,
        ).solve()

    def predict(seen: Chosen, held: Chosen) -> Floats:
        if (usable & seen).sum() <= _FEWEST_ROWS * len(names):
            return np.full(int(held.sum()), np.nan)
        return fitting.take(timed.moves, held).transfer_s(solve(seen), accelerator)

    predicted = fitting.leave_out(timed.held_out, predict)
    known = np.isfinite(predicted) & np.isfinite(measured) & (measured > 0)
    fitted = solve(np.ones(len(measured), dtype=bool))
    coefficients = {name: getattr(fitted, name) for name in names if getattr(fitted, name) > 0}
    source = _BLOG if wanted.name == "one_sided" else SOURCE
    text = f"{len(measured):,} timings of {wanted.what}, {accelerator.title}, {source}"
    if across := int((timed.nodes > 1).sum()):
        text += f"; {across:,} of them across nodes, where the tables hold one model's shape"
    if dropped := int((~usable).sum()):
        text += (
            f"; {dropped} of them, on a network that carried a third of what it does else, "
            "count in the errors and not in the fit"
        )
    return fitting.entry(
        text,
        accelerator,
        fitting.residuals(measured[known], predicted[known], timed.held_out[known]),
        **kernels,
        **coefficients,
        **({} if "latency_s" in coefficients else {"latency_s": 0.0}),
        **({} if "scale_up_fraction" in coefficients else {"scale_up_fraction": 1.0}),
        **({} if told is None else _fit_notify(fitted, accelerator, told)),
        domain=fitting.domain_of(timed.domain),
    )


def _fit_notify(
    fitted: ExchangeFit, accelerator: AcceleratorSpec, told: Exchanges
) -> dict[str, Any]:
    """Coefficients of telling how much will come: linear in the doublings of nodes, and in tokens
    over multiprocessors or in what is carried.
    """
    told = fitting.take(told, (told.nodes > 1) & (told.measured_s > 0))
    fair, measured = ~told.is_congested, told.measured_s
    if not fair.any():
        return {}
    plan = load_plan("alltoall_notify")

    def predict(fit: ExchangeFit, chosen: Chosen) -> Floats:
        return fitting.take(told.moves, chosen).notify_s(fit, accelerator)

    start = plan.begin(told.operation)
    search = Search(plan, measured, lambda values: fitted.model_copy(update=values), predict, start)
    predicted = fitting.leave_out(
        told.nodes, lambda seen, held: predict(search.solve(seen & fair), held)
    )
    found = search.find(fair, start).values
    return {**found, "notify_band": fitting.band_of(measured / predicted)}


def _across_as(entry: dict[str, Any], hopper: dict[str, Any]) -> dict[str, Any]:
    """Complete an entry across nodes, where network cards decide, which are the same: as fitted on
    Hopper, where it was.
    """
    known = {name: hopper[name] for name in (*_ACROSS, *_NOTIFY) if name in hopper}
    missing = {name: value for name, value in _ASSUMED_ACROSS.items() if name not in known}
    why = "as fitted on H100, whose network cards are the same" if known else "see normal"
    source = f"{entry['source']}; across nodes assumed, {why}"
    return {**entry, **missing, **known, "source": source}


def _assume_one_sided(entry: dict[str, Any]) -> dict[str, Any]:
    """Entry of a GPU whose one-sided kernels nobody timed."""
    errors = ("num_rows", "median_error", "p90_error", "bias", "band", "covered")
    about = ("accelerator", "command", *errors, "domain")
    kept = {name: value for name, value in entry.items() if name not in about}
    return {**kept, "kind": "assumed", "source": "As on GB200: " + entry["source"]}
