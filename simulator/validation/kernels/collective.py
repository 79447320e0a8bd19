"""Collectives inside one fast domain: NCCL's, and the all-reduces that serving engines bring along;
fits the table ``collective`` on two to eight GPUs.

Two kinds of table are read, told apart by their columns. Both are priced as the simulator prices
them, each library by itself: the simulator then takes the faster of the two for an all-reduce.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import ANY, Calibration
from simulator.config.calibration.collective import Algorithm, CollectiveFit, ProtocolFit, passes_of
from simulator.config.cluster import ClusterSpec
from simulator.validation import Answers, Measure, require
from simulator.validation.extrapolation import Doubt, of_hardware
from simulator.validation.hardware import accelerator_name, find_calibrated
from simulator.validation.kernels import SOURCE, KernelFamily
from simulator.validation.kernels import _answering as answering
from simulator.validation.kernels import _fitting as fitting
from simulator.validation.kernels._answering import Estimate, Places
from simulator.validation.kernels._fitting import GPUS, Chosen, Floats, Tables, Values
from simulator.validation.sizes import MOST_RANKS, numbers, refusals
from simulator.validation.traffic import cluster_of

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

_SCALE = 0.05
"""Error of the logarithm beyond which errors count linearly: single readings are off by twice."""
_STEP = 1e-3
"""Relative step of the numeric derivative: seconds have a kink where the fastest protocol
changes."""
_ACROSS = {"scale_out_latency_s": 12e-6, "latency_per_doubling_s": 8e-6, "scale_out_fraction": 0.85}
"""Across nodes: two of NCCL's tree steps a doubling, and what its ring reaches of a network card.
Assumed, no table holds it."""
_BOUNDS = {
    "latency_s": (1e-6, 2e-4),
    "latency_per_rank_s": (1e-9, 2e-5),
    "fraction": (0.005, 1.0),
    "copy_fraction": (0.01, 100.0),
}
"""Possible coefficients of a protocol."""
_HIDDEN = 50.0
"""A share of the port's peak above which a copy of the message costs nothing."""
_LATER, _SECOND_LATER = 2.0, 3.0
"""Factors on latencies at which a search begins anew: a minimum of several lines has several
optima."""


class _Start(NamedTuple):
    """A protocol, and where the search for its coefficients begins."""

    algorithm: Algorithm
    numbers: tuple[float, float, float, float]
    limit: float | None = None
    """Value of ``max_bytes_times_ranks``."""


_RINGS = {
    "low_latency": _Start("ring", (5e-6, 1e-6, 0.1, 0.3)),
    "middle": _Start("ring", (8e-6, 1e-6, 0.4, 2.0)),
    "bandwidth": _Start("ring", (2e-5, 3e-6, 0.8, 3.0)),
}
"""NCCL's protocols by what they are for (LL, LL128, Simple): which one a message takes is the
tuner's affair."""
_OWN = {
    "one_shot": _Start("one_shot", (4e-6, 1e-7, 0.6, 10.0)),
    "two_shot": _Start("ring", (8e-6, 5e-7, 0.6, 10.0)),
    "large": _Start("ring", (2e-5, 1e-6, 0.7, 3.0)),
}
"""Engines' kernels: each rank reads all others' data, or a part of it and hands the sum on; what is
large goes to NCCL."""
_LIMITED = {**_OWN, "one_shot": _OWN["one_shot"]._replace(limit=2.0 * 1024 * 1024)}
"""vLLM's kernel, which SGLang took over: one shot below 512 kB on four ranks and 256 kB on eight
(custom_all_reduce.cuh)."""
_USES_LIMIT = ("vllm custom_all_reduce", "sglang custom_all_reduce_older")


_COLUMNS = ("places", "num_ranks", "num_bytes", "wrong")
"""Fields of :class:`_Rows` with a value a row."""


class _Rows(NamedTuple):
    """Rows of a table that one fit prices."""

    places: Places
    gpu: str
    accelerator: str | None
    engine: str
    entry: str
    """Name in the calibration's table ``collective``."""
    operation: str
    is_eager: bool
    num_ranks: Floats
    num_bytes: Floats
    wrong: NDArray[np.object_]
    """Why a row's numbers are none of a message, or ``""``."""

    def seconds(self, fit: CollectiveFit, accelerator: AcceleratorSpec, port: float) -> Floats:
        """Seconds ``[n]`` over a port of so many bytes per second."""
        passes = passes_of(self.operation)
        total = np.add(*fit.parts_s(self.num_bytes, self.num_ranks, passes, port))
        if self.is_eager:
            return fit.eager_launch_s(total, self.num_bytes, accelerator.memory_bytes_per_s)
        return np.asarray(total)

    def take(self, chosen: Places | Chosen) -> _Rows:
        """Select some of the rows."""
        return self._replace(**{name: getattr(self, name)[chosen] for name in _COLUMNS})


class Collective(KernelFamily):
    """All-reduce, all-gather, reduce-scatter and all-to-all of equal parts."""

    columns = ("gpu", "num_gpus")
    layouts = (_NCCL, _CUSTOM)
    measures = (Measure("latency", "latency_ms", 1e-3),)
    calibrates = "collective"
    sources = ("nccl.csv.gz", "custom_allreduce.csv.gz")

    def answer(self, table: pd.DataFrame) -> Answers:
        answers = Answers.make_unsupported(len(table), len(self.measures))
        for rows in _rows_of(table):
            _answer(answers, rows)
        return answers

    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        timed: dict[tuple[str, str, str], dict[bool, _Timed]] = {}
        for table, release in zip(tables, ("nccl_ver", "engine_ver"), strict=True):
            measured = table["latency_ms"].to_numpy(dtype=float) * 1e-3
            for rows in _rows_of(table):
                own = _Timed(rows, measured[rows.places], set(table[release].iloc[rows.places]))
                kinds = timed.setdefault((rows.gpu, rows.engine, rows.entry), {})
                known = kinds.get(rows.is_eager)
                kinds[rows.is_eager] = own if known is None else known.join(own)
        found: Tables = {}
        for (gpu, engine, name), kinds in timed.items():
            if gpu in GPUS and False in kinds:
                made = _fit_entry(kinds[False], kinds.get(True))
                found.setdefault(GPUS[gpu][0], {ANY: {}}).setdefault(engine, {})[name] = made
        for engines in found.values():
            if vllm := engines.get("vllm", {}).get("custom_all_reduce"):
                source = "Of engines without an entry, as of vLLM: " + vllm["source"]
                engines[ANY]["custom_all_reduce"] = {**vllm, "source": source}
        return found


def _answer(answers: Answers, rows: _Rows) -> None:
    found = find_calibrated(rows.gpu, rows.engine)
    cluster = cluster_of(rows.accelerator) if rows.accelerator else None
    library = rows.engine if rows.entry.startswith("custom") else "nccl"
    reasons: Any = rows.wrong
    if found is None or cluster is None:
        reasons = answering.unknown_gpu(rows.gpu)
    elif rows.entry not in found[1].collective:
        known = sorted(name for name in found[1].collective if not name.startswith("custom"))
        reasons = answering.unknown_name("constants for the operation", rows.entry, known)
    else:
        reasons = _refusals(rows, found[0], cluster)
    group = f"{rows.gpu} {library} {rows.operation}{' eager' if rows.is_eager else ''}"
    rows = rows.take(answering.name_group(answers, rows.places, group, reasons))
    if found is not None and cluster is not None and len(rows.places):
        answering.fill(answers, rows.places, _estimate(*found, cluster, rows, library))


def _estimate(
    accelerator: AcceleratorSpec,
    calibration: Calibration,
    cluster: ClusterSpec,
    rows: _Rows,
    library: str,
) -> Estimate:
    fit = calibration.collective[rows.entry]
    doubts = of_hardware(fit, accelerator, f"{rows.entry.replace('_', ' ')} operations")
    if fit.kind != "assumed" and library not in _LIBRARIES:
        doubts.append(Doubt(f"no measured all-reduce of '{library}', vLLM's was"))
    return Estimate(
        rows.seconds(fit, accelerator, cluster.scale_up.bytes_per_s),
        fit,
        doubts,
        {"ranks": rows.num_ranks, "bytes": rows.num_bytes},
    )


def _refusals(
    rows: _Rows, accelerator: AcceleratorSpec, cluster: ClusterSpec
) -> NDArray[np.object_]:
    """Why each row has no answer, or ``""``."""
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
    for row in np.flatnonzero(~formats.isin(list(_BYTES)) & (wrong == "")):
        wrong[row] = answering.unknown_name("number format", formats.iloc[row], _BYTES)
    sizes = read["message_elements"] * formats.map(_BYTES).to_numpy(dtype=float)
    names = {"kernel_source": "", "engine": "", "engine_ver": ""} if is_own else {"op_name": ""}
    for (gpu, operation, *own), places in answering.group_rows(
        answering.words(table, "gpu", **names)
    ):
        is_well = wrong[places] == ""
        engine, name = _library(operation, *own) if is_own else (ANY, operation)
        yield _Rows(
            places,
            gpu,
            accelerator_name(gpu),
            engine,
            name,
            "all_reduce" if is_own else operation,
            is_own and "eager" in operation.lower(),
            np.where(is_well, read["num_gpus"][places], 2.0),
            np.where(is_well, sizes[places], 1.0),
            wrong[places],
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


class _Timed(NamedTuple):
    """Rows of one library's operation on one GPU, and what was measured."""

    rows: _Rows
    measured_s: Floats
    releases: set[Any]

    def join(self, other: _Timed) -> _Timed:
        """Rows of both."""
        parts = (self.rows, other.rows)
        both: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS
        }
        return _Timed(
            self.rows._replace(**both),
            np.concatenate([self.measured_s, other.measured_s]),
            self.releases | other.releases,
        )


def _fit_entry(timed: _Timed, eager: _Timed | None) -> dict[str, Any]:
    rows, measured = timed.rows, timed.measured_s
    accelerator, port = _hardware(rows)
    is_own = rows.entry.startswith("custom")
    start = _OWN if is_own else _RINGS
    if f"{rows.engine} {rows.entry}" in _USES_LIMIT:
        start = _LIMITED
    predicted = fitting.leave_out(
        rows.num_ranks,
        lambda seen, held: rows.take(held).seconds(_solve(start, timed, seen), accelerator, port),
    )
    fitted = _solve(start, timed, np.ones(len(measured), dtype=bool))
    ratios = measured / rows.seconds(fitted, accelerator, port)
    within = np.abs(1 / ratios - 1)
    launched = {} if eager is None else _fit_launch(fitted, eager)
    if eager is not None:
        eager_launch_s = eager.rows.seconds(fitted.model_copy(update=launched), accelerator, port)
        ratios = np.concatenate([ratios, eager.measured_s / eager_launch_s])
    library = f"{rows.engine}'s own all-reduce" if is_own else f"NCCL {rows.entry}"
    source = (
        f"{len(measured):,} timings of {library}, {', '.join(sorted(map(str, timed.releases)))}, "
        f"{accelerator.title}, {SOURCE}; errors with each number of GPUs left out (within the "
        f"fit: median {np.median(within):.3f}, 90th percentile "
        f"{np.quantile(within, 0.9):.3f}, likewise the band); across nodes assumed"
    )
    return fitting.entry(
        source,
        accelerator,
        # Leaving out a number of GPUs asks for what lies outside the domain, where bands are
        # widened: inside, residuals tell.
        fitting.residuals(measured, predicted, rows.num_ranks, fitting.band_of(ratios)),
        **({} if is_own else _ACROSS),
        **launched,
        protocols={
            name: way.model_dump(exclude_none=True) for name, way in fitted.protocols.items()
        },
        domain=fitting.domain_of({"ranks": rows.num_ranks, "bytes": rows.num_bytes}),
    )


def _hardware(rows: _Rows) -> tuple[AcceleratorSpec, float]:
    """Accelerator of some rows, and bytes per second of its port."""
    accelerator = load_accelerator(rows.accelerator or rows.gpu, "fit")
    cluster = cluster_of(accelerator.name)
    if cluster is None:
        raise ValueError(f"no cluster of {accelerator.name}")
    return accelerator, cluster.scale_up.bytes_per_s


def _solve(start: dict[str, _Start], timed: _Timed, chosen: Chosen) -> CollectiveFit:
    """Fit the protocols to the ``chosen`` rows, from several starts."""
    rows = timed.rows.take(chosen)
    accelerator, port = _hardware(rows)
    bounds = {f"{way} {name}": limits for way in start for name, limits in _BOUNDS.items()}
    numbers = np.concatenate([way.numbers for way in start.values()])
    solutions = [
        fitting.search(
            lambda values: rows.seconds(_build(start, values), accelerator, port),
            timed.measured_s[chosen],
            dict(zip(bounds, (numbers * factors).tolist(), strict=True)),
            bounds,
            _SCALE,
            diff_step=_STEP,
        )
        for factors in _starts(len(start))
    ]
    best = min(solutions, key=lambda solution: solution.cost).values
    hidden = {name for name in best if name.endswith("copy_fraction") and best[name] > _HIDDEN}
    return _build(start, {name: value for name, value in best.items() if name not in hidden})


def _starts(num_protocols: int) -> list[Floats]:
    """Factors on the coefficients where a search begins: all protocols start later, or the second
    one does, or both.
    """
    later, second = np.ones((2, num_protocols, len(_BOUNDS)))
    later[:, 0], second[1, :2] = _LATER, _SECOND_LATER
    return [np.ones(later.size), later.ravel(), second.ravel(), (later * second).ravel()]


def _build(start: dict[str, _Start], values: Values) -> CollectiveFit:
    """Protocols from their coefficients, named ``<protocol> <field>``; one without is hidden."""
    protocols = {}
    for name, way in start.items():
        keys = {field: f"{name} {field}" for field in _BOUNDS}
        own: dict[str, Any] = {field: values[key] for field, key in keys.items() if key in values}
        protocols[name] = ProtocolFit.model_construct(
            algorithm=way.algorithm, max_bytes_times_ranks=way.limit, **own
        )
    return CollectiveFit.model_construct(
        kind="fitted", source="", protocols=protocols, eager_s=0.0, eager_more_s=0.0
    )


def _fit_launch(fitted: CollectiveFit, eager: _Timed) -> Values:
    """Seconds that launching from Python adds."""
    hardware = _hardware(eager.rows)
    start = {"eager_s": 2e-5, "eager_more_s": 5e-6}
    return fitting.search(
        lambda values: eager.rows.seconds(fitted.model_copy(update=values), *hardware),
        eager.measured_s,
        start,
        dict.fromkeys(start, (0.0, np.inf)),
        _SCALE,
        diff_step=_STEP,
    ).values
