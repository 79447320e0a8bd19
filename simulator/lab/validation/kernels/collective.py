"""Collectives inside one fast domain: NCCL's, and the all-reduces that serving engines bring along;
fits the table ``collective`` on two to eight GPUs.

Two kinds of table are read, told apart by their columns. Both are priced as the simulator prices
them, each library by itself: the simulator then takes the faster of the two for an all-reduce.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import ANY, Calibration
from simulator.config.calibration.communication import CollectiveFit, ProtocolFit, passes_of
from simulator.lab.validation import Measure, require
from simulator.lab.validation.extrapolation import Doubt, of_hardware
from simulator.lab.validation.hardware import accelerator_name, find_calibrated
from simulator.lab.validation.kernels import (
    SOURCE,
    Estimate,
    KernelFamily,
    Part,
    Places,
    group_rows,
    unknown_gpu,
    unknown_name,
    words,
)
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels._fitting import GPUS, Entries, Search, Values, load_plan
from simulator.lab.validation.sizes import MOST_RANKS, numbers, refusals
from simulator.lab.validation.traffic import cluster_of

_NCCL = ("gpu", "op_name", "nccl_dtype", "num_gpus", "message_elements")
_CUSTOM = ("gpu", "kernel_source", "allreduce_dtype", "num_gpus", "message_size")
_BYTES = {
    **dict.fromkeys(("half", "float16", "bfloat16"), 2.0),
    **dict.fromkeys(("float", "float32"), 4.0),
    **dict.fromkeys(("int8", "fp8"), 1.0),
}
"""Bytes of an element, by formats' names in tables."""
_OWNERS = ("trtllm", "sglang", "vllm")
_LIBRARIES = ("nccl", *_OWNERS)
"""Libraries whose operations were measured."""
NEWER_SGLANG = (0, 5, 11)
"""SGLang's kernel changed between 0.5.10 and 0.5.14: it starts in half the time."""

_ACROSS = {"scale_out_latency_s": 12e-6, "latency_per_doubling_s": 8e-6, "scale_out_fraction": 0.85}
"""Across nodes: two of NCCL's tree steps a doubling, and what its ring reaches of a network card.
Assumed, no table holds it."""
_HIDDEN = 50.0
"""A share of the port's peak above which a copy of the message costs nothing."""
_LATER, _SECOND_LATER = 2.0, 3.0
"""Factors on the latencies of all protocols, and of the second one, at which a search begins anew:
a minimum of several lines has several optima."""


class _Rows(NamedTuple):
    """Rows of a table that one fit prices."""

    places: Places
    gpu: str
    accelerator: str | None
    engine: str
    entry: str
    """Name in the calibration's table ``collective``."""
    operation: str
    is_own: bool
    """Whether an engine brought the kernels along."""
    is_eager: bool
    num_ranks: Floats
    num_bytes: Floats
    wrong: NDArray[np.object_]
    """Why a row's numbers are none of a message, or ``""``."""
    measured_s: Floats
    """Not a number where nothing was measured."""
    release: NDArray[np.object_]

    @property
    def hardware(self) -> tuple[AcceleratorSpec, float]:
        """Accelerator, and bytes per second of its port."""
        accelerator = load_accelerator(self.accelerator or self.gpu, "fit")
        cluster = cluster_of(accelerator.name)
        if cluster is None:
            raise ValueError(f"no cluster of {accelerator.name}")
        return accelerator, cluster.scale_up.bytes_per_s

    def seconds(
        self,
        fit: CollectiveFit,
        accelerator: AcceleratorSpec,
        port: float,
        chosen: Bools | slice = slice(None),
    ) -> Floats:
        """Seconds of some rows, by default all, over a port of so many bytes per second."""
        num_bytes, num_ranks = self.num_bytes[chosen], self.num_ranks[chosen]
        total = np.add(*fit.parts_s(num_bytes, num_ranks, passes_of(self.operation), port))
        if self.is_eager:
            return fit.eager_launch_s(total, num_bytes, accelerator.memory_bytes_per_s)
        return np.asarray(total)


class Collective(KernelFamily):
    """All-reduce, all-gather, reduce-scatter and all-to-all of equal parts."""

    columns = ("gpu", "num_gpus")
    layouts = (_NCCL, _CUSTOM)
    measures = (Measure("latency", "latency_ms", 1e-3),)
    calibrates = "collective"
    sources = ("nccl.csv.gz", "custom_allreduce.csv.gz")

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        for rows in _rows_of(table):
            library = rows.engine if rows.is_own else "nccl"
            group = f"{rows.gpu} {library} {rows.operation}{' eager' if rows.is_eager else ''}"
            price = partial(_estimate, rows, library)
            yield Part(rows.places, rows.gpu, rows.engine, group, _refuse(rows), price)

    def fit(self, tables: Sequence[pd.DataFrame]) -> Entries:
        timed = fitting.gather(
            ((rows.gpu, rows.engine, rows.entry, rows.is_eager), rows)
            for table in tables
            for rows in _rows_of(table)
        )
        found: Entries = {}
        for (gpu, engine, name, is_eager), rows in timed.items():
            if gpu in GPUS and not is_eager:
                made = _fit_entry(rows, timed.get((gpu, engine, name, True)))
                found.setdefault(GPUS[gpu][0], {ANY: {}}).setdefault(engine, {})[name] = made
        for engines in found.values():
            if vllm := engines.get("vllm", {}).get("custom_all_reduce"):
                source = f"Of engines without an entry, as of vLLM: {vllm['source']}"
                engines[ANY]["custom_all_reduce"] = {**vllm, "source": source}
        return found


def _estimate(
    rows: _Rows,
    library: str,
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    places: Places,
) -> Estimate:
    fit = calibration.collective[rows.entry]
    rows = fitting.take(rows, np.isin(rows.places, places))
    doubts = of_hardware(fit, accelerator, f"{rows.entry.replace('_', ' ')} operations")
    if fit.kind != "assumed" and library not in _LIBRARIES:
        doubts.append(Doubt(f"no measured all-reduce of '{library}', vLLM's was"))
    return Estimate(
        rows.seconds(fit, *rows.hardware),
        fit,
        doubts,
        {"ranks": rows.num_ranks, "bytes": rows.num_bytes},
    )


def _refuse(rows: _Rows) -> str | NDArray[np.object_]:
    """Why rows cannot be priced, one for all or one for each."""
    found, cluster = find_calibrated(rows.gpu, rows.engine), cluster_of(rows.accelerator or "")
    if found is None or cluster is None:
        return unknown_gpu(rows.gpu)
    accelerator, calibration = found
    if rows.entry not in calibration.collective:
        known = sorted(name for name in calibration.collective if not name.startswith("custom"))
        return unknown_name("constants for the operation", rows.entry, known)
    refused = rows.wrong.copy()
    for row in np.flatnonzero(refused == ""):
        if rows.num_ranks[row] > cluster.gpus_per_node:
            refused[row] = f"{rows.num_ranks[row]:.0f} GPUs are not in one fast domain"
        elif rows.num_bytes[row] > accelerator.memory_bytes:
            refused[row] = (
                f"a message of {rows.num_bytes[row]:.3g} bytes does not fit into the GPU's memory"
            )
    return refused


def _rows_of(table: pd.DataFrame) -> Iterator[_Rows]:
    """Rows of a table by GPU, library and operation.

    Raises:
        UserError: if it is none of the tables that are known.
    """
    is_own = "kernel_source" in table.columns or "message_size" in table.columns
    require(table, _CUSTOM if is_own else _NCCL, "collective table")
    renamed = {"message_size": "message_elements", "allreduce_dtype": "nccl_dtype"}
    table = table.rename(columns=renamed) if is_own else table
    read = numbers(table, ("message_elements", "num_gpus"))
    wrong = refusals(read, {"num_gpus": 2.0}, {"message_elements": np.inf, "num_gpus": MOST_RANKS})
    formats = table["nccl_dtype"].map(str)
    release = words(table, **{"engine_ver" if is_own else "nccl_ver": ""}).to_numpy()[:, 0]
    measured_s = np.full(len(table), np.nan)
    if "latency_ms" in table.columns:
        measured_s = numbers(table, ("latency_ms",))["latency_ms"] * 1e-3
    for row in np.flatnonzero(~formats.isin(list(_BYTES)) & (wrong == "")):
        wrong[row] = unknown_name("number format", formats.iloc[row], _BYTES)
    sizes = read["message_elements"] * formats.map(_BYTES).to_numpy(dtype=float)
    names = {"kernel_source": "", "engine": "", "engine_ver": ""} if is_own else {"op_name": ""}
    for (gpu, operation, *own), places in group_rows(words(table, "gpu", **names)):
        is_well = wrong[places] == ""
        engine, name = _library(operation, *own) if is_own else (ANY, operation)
        yield _Rows(
            places,
            gpu,
            accelerator_name(gpu),
            engine,
            name,
            "all_reduce" if is_own else operation,
            is_own,
            is_own and "eager" in operation.lower(),
            np.where(is_well, read["num_gpus"][places], 2.0),
            np.where(is_well, sizes[places], 1.0),
            wrong[places],
            measured_s[places],
            release[places],
        )


def _library(kernel: str, engine: str, release: str) -> tuple[str, str]:
    """Library that a kernel is of, whatever engine calls it, and the name of its entry."""
    owner = next((name for name in _OWNERS if name in kernel.lower()), engine or ANY)
    is_older = owner == "sglang" and _release(release) < NEWER_SGLANG
    return owner, "custom_all_reduce_older" if is_older else "custom_all_reduce"


def _release(text: str) -> tuple[int, ...]:
    """Leading numbers of a release; a release without any is the newest.

    >>> _release("0.5.6.post2"), _release("")
    ((0, 5, 6), (99,))
    """
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else (99,)


def _fit_entry(rows: _Rows, eager: _Rows | None) -> dict[str, object]:
    measured, hardware = rows.measured_s, rows.hardware
    search = _search_protocols(rows)
    predicted, fitted = search.leave_out(rows.num_ranks), search.solve()
    ratios = measured / rows.seconds(fitted, *hardware)
    within = np.abs(1 / ratios - 1)
    launched = {} if eager is None else _fit_launch(fitted, eager)
    if eager is not None:
        eager_launch_s = eager.seconds(fitted.model_copy(update=launched), *hardware)
        ratios = np.concatenate([ratios, eager.measured_s / eager_launch_s])
    library = f"{rows.engine}'s own all-reduce" if rows.is_own else f"NCCL {rows.entry}"
    source = (
        f"{len(measured):,} timings of {library}, {', '.join(sorted(set(rows.release)))}, "
        f"{hardware[0].title}, {SOURCE}; errors with each number of GPUs left out (within the "
        f"fit: median {np.median(within):.3f}, 90th percentile "
        f"{np.quantile(within, 0.9):.3f}, likewise the band); across nodes assumed"
    )
    return fitting.entry(
        source,
        hardware[0],
        # Leaving out a number of GPUs asks for what lies outside the domain, where bands are
        # widened: inside, residuals tell.
        fitting.residuals(measured, predicted, rows.num_ranks, fitting.band_of(ratios)),
        **({} if rows.is_own else _ACROSS),
        **launched,
        protocols={
            name: way.model_dump(exclude_none=True) for name, way in fitted.protocols.items()
        },
        domain=fitting.domain_of({"ranks": rows.num_ranks, "bytes": rows.num_bytes}),
    )


def _search_protocols(rows: _Rows) -> Search[CollectiveFit]:
    """Search for the coefficients of a library's protocols, of which the fastest is taken. They are
    named ``<protocol> <field>``, and one without is hidden.
    """
    plan, hardware = load_plan("collective"), rows.hardware
    wanted = next(
        one
        for one in plan.entries
        if all(getattr(rows, name) == value for name, value in one.rows.items())
    )
    ways = wanted.search

    def build(values: Values) -> CollectiveFit:
        protocols: dict[str, dict[str, Any]] = {
            way: {"algorithm": "ring"} | wanted.given.get(way, {}) for way in ways
        }
        for name, value in values.items():
            way, _, field = name.partition(" ")
            protocols[way][field] = value
        made = {way: ProtocolFit.model_construct(**fields) for way, fields in protocols.items()}
        return CollectiveFit.model_construct(
            kind="fitted", source="", protocols=made, eager_s=0.0, eager_more_s=0.0
        )

    def hide(values: Values) -> Values:
        return {
            name: value
            for name, value in values.items()
            if not name.endswith("copy_fraction") or value <= _HIDDEN
        }

    start = {f"{way} {name}": value for way in ways for name, value in plan.begin(way).items()}
    late = {name: _LATER for name in start if name.endswith(" latency_s")}
    second = {f"{ways[1]} {name}": _SECOND_LATER for name in ("latency_s", "latency_per_rank_s")}
    both = second | {name: factor * second.get(name, 1.0) for name, factor in late.items()}
    return Search(
        plan,
        rows.measured_s,
        build,
        lambda fit, chosen: rows.seconds(fit, *hardware, chosen),
        start,
        hide,
        [
            {name: value * factors.get(name, 1.0) for name, value in start.items()}
            for factors in (late, second, both)
        ],
    )


def _fit_launch(fitted: CollectiveFit, eager: _Rows) -> Values:
    """Seconds that launching from Python adds."""
    plan, hardware = load_plan("collective"), eager.hardware
    search = Search(
        plan,
        eager.measured_s,
        lambda values: fitted.model_copy(update=values),
        lambda fit, chosen: eager.seconds(fit, *hardware, chosen),
        plan.begin("launch"),
    )
    return search.find().values
