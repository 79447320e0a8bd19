"""Tokens to their experts and back: DeepEP's low-latency and normal kernels, as engines ship them,
and NVLink one-sided ones.

Random choices (the benchmarks' own) are sent through the dispatch policies and topologies of the
simulator; what they put on the busiest rank and wire is priced with the formula of
``simulator.config.calibration.exchange``, as the simulator does. Four kinds of table are read, told
apart by their columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.config.calibration import Calibration
from simulator.validation import OK, Answers, Measure, require
from simulator.validation.error_bands import Band
from simulator.validation.extrapolation import Doubt, of_hardware, outside_of, settle
from simulator.validation.hardware import accelerator_name, calibrated
from simulator.validation.kernels._moves import VALUE_BYTES, Moves, moves
from simulator.validation.traffic import cluster_of

_MICRO = 1e-6
_GPUS_PER_NODE = 8
_LOW_LATENCY = ("gpu", "node_num", "hidden_size", "num_token", "num_topk", "num_experts")
_NORMAL = (*_LOW_LATENCY, "dispatch_sms", "combine_sms")
_BACKENDS = (
    "gpu",
    "comm_backend",
    "phase",
    "comm_dtype",
    "ep_size",
    "hidden_size",
    "topk",
    "num_experts",
    "num_tokens",
)
_PUBLISHED = ("library", "hardware", "mode", "op", "ep", "tokens_per_rank", "conditions")
_OPERATIONS = ("dispatch", "combine")
_UNANSWERED = "unsupported"
_OWNERS = {"low_latency": ("sglang", "any", "nan"), "normal": ("sglang", "any", "nan")}
"""Engines that kernels were measured with, where the kernels' name does not say it."""
_POLICY = {"low_latency": "per_expert", "normal": "per_node", "one_sided": "per_expert"}
"""NVLink one-sided kernels were timed with a perfect router: each of a token's experts on another
rank."""
_NOTIFY_WIDER = 4.0
"""How much wider, in log space, the band of telling how much will come is than the transfer's,
where it has none of its own: it holds ranks' waits for each other."""
_CONGESTED_NODES = 8
_CONGESTED_TOKENS = {"dispatch": 32, "combine": 4096}
"""On the eight nodes of the DeepEP table, beyond so many tokens the network carries a third of what
it does on four."""
_CONGESTED_NOTIFY = 32
"""Telling waits for what the dispatch left on that network."""


class Part(NamedTuple):
    """Rows of a table with one GPU, one kind of kernels and one operation: a column of its
    answers.
    """

    places: NDArray[np.intp]
    measure: int
    measured: str
    """The column that holds what was measured, microseconds."""
    gpu: str
    accelerator: str | None
    engine: str
    kernels: str
    operation: str
    moves: Moves
    num_ranks: NDArray[np.float64]
    held_out: NDArray[np.str_]
    """The shape, or across nodes their number: what is left out together when a fit is
    cross-validated."""
    is_congested: NDArray[np.bool_]
    is_whole_row: bool = True
    """Whether the rows measure nothing else."""
    is_notify: bool = False
    """Telling how much will come, and not the transfer."""
    guess: str = ""
    measured_s: NDArray[np.float64] = np.zeros(0)


class Alltoall(Frozen):
    """Exchanges between ranks and experts."""

    columns: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[tuple[str, ...], ...]] = (_LOW_LATENCY, _NORMAL, _BACKENDS, _PUBLISHED)
    measures: ClassVar[tuple[Measure, ...]] = ()

    def measures_of(
        self, table: pd.DataFrame, where: str = "all-to-all table"
    ) -> tuple[Measure, ...]:
        columns = set(map(str, table.columns))
        if columns >= set(_NORMAL):
            return tuple(
                Measure(f"{operation}{suffix}", f"{operation}_{part}_us", _MICRO)
                for operation in _OPERATIONS
                for part, suffix in (("transmit", ""), ("notify", "_notify"))
            )
        if columns >= set(_LOW_LATENCY):
            return tuple(
                Measure(operation, f"{operation}_avg_t_us", _MICRO) for operation in _OPERATIONS
            )
        if columns >= set(_BACKENDS):
            return (Measure("latency", "latency", _MICRO),)
        if columns >= set(_PUBLISHED):
            return (Measure("latency", "latency_us", _MICRO),)
        require(table, _BACKENDS if "comm_backend" in columns else _LOW_LATENCY, where)
        raise UserError(f"{where}: its columns are of no kind that is known")

    def answer(self, table: pd.DataFrame) -> Answers:
        answers = Answers.unsupported(len(table), len(self.measures_of(table)))
        for part in parts_of(table):
            _answer(answers, part)
        return answers


def _answer(answers: Answers, part: Part) -> None:
    found = calibrated(part.gpu, part.engine)
    kernels = found[1].exchange.get(part.kernels) if found else None
    fit = kernels.get(part.operation) if kernels and part.operation in _OPERATIONS else None  # type: ignore[call-overload]
    for place in part.places:
        answers.group[place] = (
            f"{part.gpu} {part.engine} "
            f"{part.kernels}{' ' + part.operation if part.is_whole_row else ''}"
        )
    if found is None or fit is None or part.accelerator is None:
        why = _no_fit(part, None if found is None else found[1])
        for place in part.places:
            answers.status[place] = f"unsupported: {why}"
        return
    accelerator, load = found[0], part.moves.load
    seconds = (
        part.moves.notify_s(fit, accelerator)
        if part.is_notify
        else part.moves.transfer_s(fit, accelerator)
    )
    doubts = [Doubt(part.guess)] if part.guess else []
    doubts += of_hardware(fit, accelerator, f"{part.kernels} kernels")
    if fit.kind != "assumed" and part.engine not in _OWNERS.get(part.kernels, (part.engine,)):
        doubts.append(Doubt(f"these kernels were not measured as {part.engine} calls them"))
    quantities = {
        "tokens": load.tokens,
        "vector_bytes": load.vector_bytes,
        "experts": load.num_experts,
        "nodes": load.num_nodes,
    }
    values = {name: np.asarray(numbers, dtype=float) for name, numbers in quantities.items()}
    statuses, wider = settle(len(seconds), doubts, outside_of(fit, **values, ranks=part.num_ranks))
    band = Band.of(fit)
    if part.is_notify:
        band = band.widened(_NOTIFY_WIDER) if fit.notify_band is None else Band(*fit.notify_band)
    low, high = band.spread(seconds, wider)
    known = part.moves.wrong == ""
    for found_s, into in ((seconds, answers.seconds), (low, answers.low), (high, answers.high)):
        into[part.places, part.measure] = np.where(known, found_s, np.nan)
    for place, status, wrong in zip(part.places, statuses, part.moves.wrong, strict=True):
        if wrong:
            answers.status[place] = f"unsupported: {wrong}"
        elif (
            status != OK or answers.status[place] == _UNANSWERED
        ):  # a row is as sure as its least sure part
            answers.status[place] = status


def _no_fit(part: Part, calibration: Calibration | None) -> str:
    """Why nothing is known of a part's kernels, and what is known instead."""
    if calibration is None:
        return f"no calibrated accelerator '{part.gpu}'"
    known = calibration.exchange.get(part.kernels)
    if known is None:
        return (
            f"no constants for the kernels '{part.kernels}'; "
            f"known: {', '.join(calibration.exchange)}"
        )
    return f"{part.kernels} kernels have no operation '{part.operation}'; known: {', '.join(known)}"


def parts_of(table: pd.DataFrame) -> Iterator[Part]:
    """The rows of a table by GPU, kernels and operation.

    Raises:
        UserError: if it is none of the tables that are known.
    """
    columns = set(map(str, table.columns))
    Alltoall().measures_of(table)
    if columns >= set(_LOW_LATENCY):
        yield from _deepep(table, "normal" if columns >= set(_NORMAL) else "low_latency")
    elif columns >= set(_BACKENDS):
        yield from _backends(table)
    else:
        yield from _published(table)


def _groups(
    table: pd.DataFrame, names: list[str]
) -> Iterator[tuple[tuple[str, ...], NDArray[np.intp]]]:
    keys = pd.Series(
        list(zip(*(table[name].map(str) for name in names), strict=True)), dtype=object
    )
    codes, found = pd.factorize(keys)
    for code, key in enumerate(found):
        yield key, np.flatnonzero(codes == code)


def _deepep(table: pd.DataFrame, kernels: str) -> Iterator[Part]:
    table = table.rename(columns={"num_token": "num_tokens", "num_topk": "topk"})
    table = table.assign(engine=table["engine"] if "engine" in table.columns else "sglang")
    for (gpu, engine), places in _groups(table, ["gpu", "engine"]):
        rows = table.iloc[places]
        nodes = pd.to_numeric(rows["node_num"], errors="coerce")
        rows = rows.assign(num_ranks=nodes.where(nodes % 1 == 0) * _GPUS_PER_NODE)
        parts = []
        for operation in _OPERATIONS:
            value_bytes = VALUE_BYTES["fp8" if operation == "dispatch" else "bfloat16"]
            sms = rows[f"{operation}_sms"] if kernels == "normal" else 0
            parts.append(
                _part(
                    rows.assign(value_bytes=value_bytes, sms=sms),
                    places,
                    gpu,
                    engine,
                    kernels,
                    operation,
                    "deepep",
                )
            )
        wrong = np.where(parts[0].moves.wrong == "", parts[1].moves.wrong, parts[0].moves.wrong)
        for o, part in enumerate(parts):
            part = part._replace(is_whole_row=False, moves=part.moves._replace(wrong=wrong))
            if kernels == "normal":
                tokens = np.where(
                    part.num_ranks == _CONGESTED_NODES * _GPUS_PER_NODE, part.moves.load.tokens, 0
                )
                told = part._replace(is_notify=True, is_congested=tokens > _CONGESTED_NOTIFY)
                yield told._replace(measure=2 * o + 1, measured=f"{part.operation}_notify_us")
                congested = tokens > _CONGESTED_TOKENS[part.operation]
                yield part._replace(
                    measure=2 * o, measured=f"{part.operation}_transmit_us", is_congested=congested
                )
            else:
                yield part._replace(measure=o, measured=f"{part.operation}_avg_t_us")


def _backends(table: pd.DataFrame) -> Iterator[Part]:
    table = table.assign(engine=table["engine"] if "engine" in table.columns else "any")
    for (gpu, engine, backend, phase, dtype), places in _groups(
        table, ["gpu", "engine", "comm_backend", "phase", "comm_dtype"]
    ):
        guess, sent_as = "", dtype.lower()
        if sent_as == "default":
            sent_as = (
                "bfloat16"
                if phase == "combine" or backend.endswith("ht") or "v2" in backend
                else "fp8"
            )
        kernels = backend
        if phase == "combine" and sent_as in VALUE_BYTES:
            if backend.endswith("_ll") and VALUE_BYTES[sent_as] < VALUE_BYTES["bfloat16"]:
                kernels = (
                    f"{backend}_{sent_as}"  # quantised on the way back by kernels of their own
                )
            else:
                sent_as = "bfloat16"  # what comes back is not quantised
        if sent_as not in VALUE_BYTES:
            guess, sent_as = f"'{dtype}' priced as bfloat16", "bfloat16"
        if "onesided" in re.sub(r"[\W_]", "", backend.lower()):
            kernels, guess = (
                "one_sided",
                guess or "priced as TensorRT-LLM's NVLink one-sided kernels",
            )
        rows = table.iloc[places]
        rows = rows.assign(num_ranks=rows["ep_size"], value_bytes=VALUE_BYTES[sent_as])
        policy = "per_expert" if "_ll" in backend or "generation" in backend else "per_node"
        groups = "deepseek" if engine == "trtllm" else "none"
        part = _part(rows, places, gpu, engine, kernels, phase, groups, policy)
        yield part._replace(measured="latency", guess=guess)


def _published(table: pd.DataFrame) -> Iterator[Part]:
    """Figures of DeepEP's and TensorRT-LLM's own pages: DeepSeek-V3's shape."""
    payload = {"post-quant MXFP8": "mxfp8", "NVFP4": "nvfp4", "MXFP8": "mxfp8"}
    for (library, hardware, mode, operation), places in _groups(
        table, ["library", "hardware", "mode", "op"]
    ):
        gpu = next(
            (
                name
                for name in ("h800", "gb200", "h100", "h200", "b200")
                if name.upper() in hardware
            ),
            hardware,
        )
        one_sided, normal = "one-sided" in mode, mode == "normal"
        kernels = (
            "one_sided"
            if one_sided
            else "normal"
            if normal
            else "low_latency"
            if mode == "low-latency"
            else library
        )
        rows = table.iloc[places]
        usual = "bfloat16" if one_sided or operation == "combine" else "fp8"
        sent_as = [
            next((v for k, v in payload.items() if k in str(text)), usual)
            for text in rows["conditions"]
        ]
        rows = rows.assign(
            num_ranks=rows["ep"],
            hidden_size=7168,
            topk=8,
            num_experts=256,
            num_tokens=rows["tokens_per_rank"],
            value_bytes=[VALUE_BYTES[name] for name in sent_as],
            sms=0,
        )
        part = _part(
            rows,
            places,
            gpu,
            "any",
            kernels,
            operation,
            "deepep" if normal else "none",
            _POLICY.get(kernels, "per_rank"),
        )
        guess = ""
        if "pure RDMA" in library:
            guess, part = (
                "its kernels send over the network inside a node too",
                _over_the_network(part),
            )
        yield part._replace(
            measured="latency_us", guess=guess, held_out=part.num_ranks.astype(int).astype(str)
        )


def _over_the_network(part: Part) -> Part:
    """The same where every vector leaves by the network card, as before DeepEP used NVLink for low
    latency.
    """
    cluster, load = cluster_of(part.accelerator or ""), part.moves.load
    if cluster is None or cluster.scale_out is None:
        return part
    moved = np.asarray(load.copies, dtype=float) * np.asarray(load.vector_bytes, dtype=float)
    across = part.moves._replace(
        load=load._replace(crossing=load.copies, num_nodes=np.maximum(load.num_nodes, 2)),
        scale_up_s=np.zeros(len(moved)),
        scale_out_s=moved / cluster.scale_out.bytes_per_s,
    )
    return part._replace(moves=across)


def _part(
    rows: pd.DataFrame,
    places: NDArray[np.intp],
    gpu: str,
    engine: str,
    kernels: str,
    operation: str,
    groups: str,
    policy: str | None = None,
) -> Part:
    name = accelerator_name(gpu)
    moved = moves(rows, name or "", policy or _POLICY[kernels], groups)
    ranks = np.nan_to_num(
        pd.to_numeric(rows["num_ranks"], errors="coerce").to_numpy(dtype=float), nan=0.0
    )
    shapes = zip(
        *(rows[column].map(str) for column in ("hidden_size", "topk", "num_experts")), strict=True
    )
    texts = np.array([" ".join(shape) for shape in shapes], dtype=str)
    nodes = np.asarray(moved.load.num_nodes, dtype=float)
    held = np.where(nodes > 1, np.char.add("nodes ", nodes.astype(int).astype(str)), texts)
    return Part(
        places,
        0,
        "",
        gpu,
        name,
        engine,
        kernels,
        operation,
        moved,
        ranks,
        held,
        np.zeros(len(places), dtype=bool),
    )
