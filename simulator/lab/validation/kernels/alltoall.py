"""Tokens to their experts and back: DeepEP's low-latency and normal kernels, as engines ship them,
and NVLink one-sided ones; fits the table ``exchange``.

Random choices (the benchmarks' own) are sent through the dispatch policies and topologies of the
simulator; what they put on the busiest rank and link is priced with the formula of
:mod:`simulator.config.calibration.communication`, as the simulator does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats
from simulator.base.errors import UserError
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import ANY, Calibration
from simulator.config.calibration.communication import ExchangeFit, Load
from simulator.lab.validation import Measure, require
from simulator.lab.validation.extrapolation import Band, Doubt, of_hardware
from simulator.lab.validation.hardware import accelerator_name, find_calibrated
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
from simulator.lab.validation.kernels._fitting import Entries, Search, Values, Wanted, load_plan
from simulator.lab.validation.sizes import MOST_CHOICES, MOST_EXPERTS, MOST_RANKS, numbers, refusals
from simulator.lab.validation.traffic import cluster_of, draw_choices

# Tables of exchanges as loads of the busiest rank and link, which the simulator prices, by GPU,
# kernels and operation. Four kinds of table are read, told apart by their columns.

_SCALE_BYTES = 4 / 128
"""An fp32 scale for 128 values goes with fp8."""
VALUE_BYTES = {
    "fp8": 1.0 + _SCALE_BYTES,
    "bfloat16": 2.0,
    "float16": 2.0,
    "half": 2.0,
    "nvfp4": 0.5 + 1 / 16,
    "fp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
    "mxfp8": 1.0 + 1 / 32,
}
"""Bytes of one value as it travels, by names in tables."""
_DEEPEP_GROUPS = 4
"""DeepEP's own benchmark lets a token use at most four nodes (``num_topk_groups = min(num_nodes,
4)``)."""
_MOST_SMS = 1024.0
"""Several times what any GPU has."""
_MOST = {
    "num_ranks": MOST_RANKS,
    "topk": MOST_CHOICES,
    "num_experts": MOST_EXPERTS,
}
"""Largest values by column, where they are not those of any column."""
_SIZES = ("num_ranks", "hidden_size", "topk", "num_experts", "num_tokens", "value_bytes")


_MICRO = 1e-6
"""Seconds of a microsecond."""
_GPUS_PER_NODE = 8
"""GPUs of a node in DeepEP's tables."""
_LOW_LATENCY = ("gpu", "node_num", "hidden_size", "num_token", "num_topk", "num_experts")
_SMS = ("dispatch_sms", "combine_sms")
_BACKENDS = (
    *("gpu", "comm_backend", "phase", "comm_dtype", "ep_size"),
    *("hidden_size", "topk", "num_experts", "num_tokens"),
)
_PUBLISHED = ("library", "hardware", "mode", "op", "ep", "tokens_per_rank", "conditions")
_OPERATIONS = ("dispatch", "combine")
_CONGESTED_NODES = 8
_CONGESTED_TOKENS = {"dispatch": 32, "combine": 4096}
"""On the eight nodes of the DeepEP table, beyond so many tokens the network carries a third of what
it does on four."""
_CONGESTED_NOTIFY = 32
"""Telling waits for what the dispatch left on that network."""
_PAYLOADS = {"post-quant MXFP8": "mxfp8", "NVFP4": "nvfp4", "MXFP8": "mxfp8"}
"""Words in published conditions: the format that travels."""
_PUBLISHED_GPUS = ("h800", "gb200", "h100", "h200", "b200")
_POLICY = {"low_latency": "per_expert", "normal": "per_node", "one_sided": "per_expert"}
"""Dispatch policies of published kernels. NVLink one-sided ones were timed with a perfect router:
each of a token's experts on another rank."""
_DEEPSEEK = {"hidden_size": 7168, "topk": 8, "num_experts": 256}
"""DeepSeek-V3's shape, of which published figures are. Its router takes 4 of 8 groups of
experts."""
_BY_NETWORK = "its kernels send over the network inside a node too"
"""Said of low-latency kernels from before DeepEP used NVLink for them."""


class Exchanges(NamedTuple):
    """``n`` rows of a table with one GPU, one kind of kernels and one operation: a column of its
    answers.
    """

    gpu: str
    engine: str
    kernels: str
    operation: str
    guess: str
    is_notify: bool
    """Telling how much will come, and not the transfer."""
    measure: int
    is_whole_row: bool
    """Whether the rows measure nothing else."""
    accelerator: str | None
    places: Places
    load: Load
    scale_up_s: Floats
    """``[n]`` seconds of the busiest link inside domains, at its peak."""
    scale_out_s: Floats
    """``[n]`` seconds of the busiest link between domains, at its peak."""
    num_sms: Floats
    """``[n]`` multiprocessors that the kernels hold; 0 where the row does not say."""
    num_ranks: Floats
    wrong: NDArray[np.object_]
    """``[n]`` why the row's numbers are none of an exchange, or such ranks are not joined; ``""``
    where all is well."""
    held_out: NDArray[np.object_]
    """The shape, or across nodes their number: what is left out together when a fit is
    cross-validated."""
    is_congested: Bools
    measured_s: Floats
    """Measured seconds ``[n]``, not a number where nothing was measured."""

    @property
    def nodes(self) -> Floats:
        """Nodes ``[n]`` that the ranks lie in."""
        return np.asarray(self.load.num_nodes, dtype=float)

    @property
    def domain(self) -> dict[str, Floats]:
        """Quantities that a price depends on."""
        load = self.load
        named = (load.tokens, load.vector_bytes, load.num_experts, load.num_nodes, self.num_ranks)
        names = ("tokens", "vector_bytes", "experts", "nodes", "ranks")
        return {name: np.asarray(values) for name, values in zip(names, named, strict=True)}

    def carry_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Seconds of copying and links."""
        wires = np.maximum(
            self.scale_up_s / fit.scale_up_fraction, self.scale_out_s / fit.scale_out_fraction
        )
        copying = fit.copying_s(self.load, accelerator.num_multiprocessors, self.num_sms)
        return fit.overlapped_s(copying, wires)

    def seconds(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Seconds of the transfer alone, as kernel timings see it, or of telling how much will
        come.
        """
        carrying_s, num_sms = self.carry_s(fit, accelerator), accelerator.num_multiprocessors
        if self.is_notify:
            return fit.announce_s(self.load, carrying_s, num_sms, self.num_sms)
        return np.asarray(np.maximum(fit.floor_s, fit.start_s(self.load) + carrying_s))


_SAME = (*Exchanges._fields[:8], "policy", "groups")
"""Columns in which rows of one column of answers are the same: the policy that sends their copies,
and whose limit on groups of experts holds (``none``, ``deepep`` or ``deepseek``), too."""
_TOLD = ("gpu", "engine", "kernels", "operation", "guess", "policy", "groups", "value_bytes")
_Told = tuple[str | float, ...]


def _read_deepep(
    kernels: str, times: Mapping[str, str], table: pd.DataFrame
) -> Iterator[pd.DataFrame]:
    """Rows of DeepEP's own benchmark, both operations in each."""
    nodes, tokens = (
        pd.to_numeric(table[one], errors="coerce") for one in ("node_num", "num_token")
    )
    rows = table.rename(columns={"num_token": "num_tokens", "num_topk": "topk"}).assign(
        **words(table, "gpu", engine="sglang"),
        num_ranks=nodes.where(nodes % 1 == 0) * _GPUS_PER_NODE,
        **{"kernels": kernels, "policy": _POLICY[kernels], "groups": "deepep", "guess": ""},
    )
    is_large = (nodes == _CONGESTED_NODES) & (kernels == "normal")
    for measure, (name, column) in enumerate(times.items()):
        operation = name.removesuffix("_notify")
        most = _CONGESTED_TOKENS[operation] if name == operation else _CONGESTED_NOTIFY
        yield rows.assign(
            operation=operation,
            measure=measure,
            is_notify=name != operation,
            is_whole_row=False,
            value_bytes=VALUE_BYTES["fp8" if operation == "dispatch" else "bfloat16"],
            num_sms=rows.get(f"{operation}_sms", 0),
            is_congested=is_large & (tokens > most),
            measured_us=rows.get(column, np.nan),
        )


def _read_backends(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Rows of engines' own kernels, one operation in each."""
    named = words(table, "gpu", "comm_backend", "phase", "comm_dtype", engine=ANY)
    measured, held = table.get("latency", np.nan), table.get("sms", 0)
    more = {"num_ranks": table["ep_size"], "num_sms": held, "measured_us": measured}
    yield _tell_rows(table, named, _tell_backend, more)


def _tell_rows(
    table: pd.DataFrame,
    named: pd.DataFrame,
    tell: Callable[..., _Told],
    more: dict[str, Any],
) -> pd.DataFrame:
    """A table of one operation a row, with what follows from its names, and more columns."""
    rows = [tell(*row) for row in named.itertuples(index=False)]
    told = pd.DataFrame(rows, table.index, _TOLD)
    whole = {"measure": 0, "is_notify": False, "is_whole_row": True, "is_congested": False}
    return table.assign(**told, **whole | more)


def _tell_backend(gpu: str, backend: str, phase: str, dtype: str, engine: str) -> _Told:
    kernels, sent_as = _format_sent(backend, phase, dtype.lower())
    guess = ""
    if sent_as not in VALUE_BYTES:
        guess, sent_as = f"'{dtype}' priced as bfloat16", "bfloat16"
    if "onesided" in re.sub(r"[\W_]", "", backend.lower()):
        kernels = "one_sided"
        guess = guess or "priced as TensorRT-LLM's NVLink one-sided kernels"
    policy = "per_expert" if "_ll" in backend or "generation" in backend else "per_node"
    groups = "deepseek" if engine == "trtllm" else "none"
    return gpu, engine, kernels, phase, guess, policy, groups, VALUE_BYTES[sent_as]


def _format_sent(backend: str, phase: str, dtype: str) -> tuple[str, str]:
    """Kernels of a backend, and the format that they send."""
    if dtype == "default":
        is_wide = phase == "combine" or backend.endswith("ht") or "v2" in backend
        dtype = "bfloat16" if is_wide else "fp8"
    if phase != "combine" or dtype not in VALUE_BYTES:
        return backend, dtype
    if backend.endswith("_ll") and VALUE_BYTES[dtype] < VALUE_BYTES["bfloat16"]:
        return f"{backend}_{dtype}", dtype  # quantised on the way back by kernels of their own
    return backend, "bfloat16"  # results are not quantised


def _read_published(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Figures of DeepEP's and TensorRT-LLM's own pages: DeepSeek-V3's shape."""
    named = words(table, "library", "hardware", "mode", "op", "conditions")
    tokens, ranks = table["tokens_per_rank"], table["ep"]
    more = {"num_tokens": tokens, "num_ranks": ranks, "held_out": ranks, "num_sms": 0}
    more |= {"measured_us": table.get("latency_us", np.nan), **_DEEPSEEK}
    yield _tell_rows(table, named, _tell_published, more)


def _tell_published(
    library: str, hardware: str, mode: str, operation: str, conditions: str
) -> _Told:
    gpu = next((name for name in _PUBLISHED_GPUS if name.upper() in hardware), hardware)
    kernels = {"normal": "normal", "low-latency": "low_latency"}.get(mode, library)
    kernels = "one_sided" if "one-sided" in mode else kernels
    usual = "bfloat16" if kernels == "one_sided" or operation == "combine" else "fp8"
    sent_as = next((one for text, one in _PAYLOADS.items() if text in conditions), usual)
    policy, groups = _POLICY.get(kernels, "per_rank"), "deepep" if mode == "normal" else "none"
    guess = _BY_NETWORK if "pure RDMA" in library else ""
    return gpu, ANY, kernels, operation, guess, policy, groups, VALUE_BYTES[sent_as]


def _read(table: pd.DataFrame) -> Iterator[Exchanges]:
    """Rows of a table by GPU, kernels and operation."""
    for rows in _layout_of(table).read(table):
        for key, places in group_rows(rows[list(_SAME)]):
            same = dict(zip(_SAME, key, strict=True))
            choices = same.pop("policy"), same.pop("groups")
            yield _make_exchanges(rows.iloc[places], places, *choices, same)


def _make_exchanges(
    rows: pd.DataFrame, places: Places, policy: str, groups: str, same: dict[str, Any]
) -> Exchanges:
    accelerator = accelerator_name(same["gpu"])
    held = [name for name in ("sms", "dispatch_sms", "combine_sms") if name in rows.columns]
    sizes = numbers(rows, (*_SIZES, *held))
    sizes |= {name: np.nan_to_num(sizes[name], nan=0.0) for name in held}
    least, most = (dict.fromkeys(held, end) for end in (0.0, _MOST_SMS))
    wrong = refusals(sizes, least | {"value_bytes": 0.0}, _MOST | most, ("value_bytes",))
    wrong[(sizes["topk"] > sizes["num_experts"]) & (wrong == "")] = "topk is above num_experts"
    is_well = wrong == ""
    ranks, hidden, top_k, experts, tokens, value_bytes = np.where(
        is_well, np.stack([sizes[name] for name in _SIZES]), 1.0
    )
    shapes, shape = np.unique(
        np.stack([ranks, hidden, top_k, experts], axis=1), axis=0, return_inverse=True
    )
    found = np.full((len(shapes), 5), np.nan)
    for s, (r, h, k, e) in enumerate(shapes.astype(int).tolist()):
        limit = _limit(groups, r, h, k, e)
        one = draw_choices(accelerator or "", r, policy, e, k, *limit)
        if one is not None:
            found[s] = one
    copies, crossing, up, out, nodes = found[shape.ravel()].T
    wrong[np.isnan(copies) & is_well] = "so many of its GPUs are not joined"
    vector_bytes, nodes = hidden * value_bytes, np.nan_to_num(nodes, nan=1.0)
    vectors, moved = tokens * vector_bytes, tokens * copies
    if (
        same["guess"] == _BY_NETWORK
        and (cluster := cluster_of(accelerator or ""))
        and cluster.scale_out
    ):
        crossing, nodes, up = copies, np.maximum(nodes, 2), np.zeros_like(up)
        out = copies / cluster.scale_out.bytes_per_s
    across = "nodes " + pd.Series(nodes, rows.index).astype(int).astype(str)
    shaped = words(rows, "hidden_size", "topk", "num_experts").agg(" ".join, axis=1)
    return Exchanges(
        **same,
        accelerator=accelerator,
        places=places,
        load=Load(tokens, moved, tokens * crossing, vector_bytes, experts, nodes),
        scale_up_s=vectors * up,
        scale_out_s=vectors * out,
        num_sms=np.where(is_well, np.nan_to_num(numbers(rows, ("num_sms",))["num_sms"]), 0.0),
        num_ranks=ranks,
        wrong=wrong,
        held_out=rows.get("held_out", shaped.where(nodes <= 1, across)).astype(str).to_numpy(),
        is_congested=rows["is_congested"].to_numpy(bool),
        measured_s=pd.to_numeric(rows["measured_us"], errors="coerce").to_numpy(float) * _MICRO,
    )


def _limit(
    groups: str, num_ranks: int, hidden: int, top_k: int, num_experts: int
) -> tuple[int, int]:
    """Groups of experts, and how many of them a token may use."""
    nodes = -(-num_ranks // 8)
    if groups == "deepep" and nodes > _DEEPEP_GROUPS:
        return nodes, _DEEPEP_GROUPS
    if groups == "deepseek" and (hidden, top_k, num_experts) == tuple(_DEEPSEEK.values()):
        return 8, 4
    return 1, 1


class _Layout(NamedTuple):
    """Kind of table."""

    columns: tuple[str, ...]
    """Columns that it must have."""
    measured: dict[str, str]
    """Columns with what was measured, microseconds, by the names of measures."""
    read: Callable[[pd.DataFrame], Iterator[pd.DataFrame]]
    """Rows of the table, with the same columns for all kinds."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures of such a table."""
        return tuple(Measure(name, column, _MICRO) for name, column in self.measured.items())


_TIMES = {
    "dispatch": "dispatch_transmit_us",
    "dispatch_notify": "dispatch_notify_us",
    "combine": "combine_transmit_us",
    "combine_notify": "combine_notify_us",
}
_MEAN_TIMES = {name: f"{name}_avg_t_us" for name in _OPERATIONS}
_LAYOUTS = (
    _Layout((*_LOW_LATENCY, *_SMS), _TIMES, partial(_read_deepep, "normal", _TIMES)),
    _Layout(_LOW_LATENCY, _MEAN_TIMES, partial(_read_deepep, "low_latency", _MEAN_TIMES)),
    _Layout(_BACKENDS, {"latency": "latency"}, _read_backends),
    _Layout(_PUBLISHED, {"latency": "latency_us"}, _read_published),
)
"""Kinds of table, of which the first is taken whose columns are there."""


def _layout_of(table: pd.DataFrame, where: str = "all-to-all table") -> _Layout:
    """Find the kind of a table.

    Raises:
        UserError: if it is none of those that are known.
    """
    columns = set(map(str, table.columns))
    for layout in _LAYOUTS:
        if columns >= set(layout.columns):
            return layout
    require(table, _BACKENDS if "comm_backend" in columns else _LOW_LATENCY, where)
    raise UserError(f"{where}: its columns are of no kind that is known")


# Fits of these, and their estimates.


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
_ABSENT = {
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
    layouts = tuple(layout.columns for layout in _LAYOUTS)
    measures = ()
    calibrates = "exchange"
    sources = (
        "deepep_low_latency.csv.gz",
        "deepep_normal.csv.gz",
        "moe_alltoall.csv.gz",
        "published/alltoall.csv",
    )

    def measures_of(self, table: pd.DataFrame, where: str = "table") -> tuple[Measure, ...]:
        return _layout_of(table, where).measures

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        for one in _read(table):
            operation = f" {one.operation}" if one.is_whole_row else ""
            group = f"{one.gpu} {one.engine} {one.kernels}{operation}"
            price = partial(_estimate, one)
            yield Part(one.places, one.gpu, one.engine, group, _refuse(one), price, one.measure)

    def fit(self, tables: Sequence[pd.DataFrame]) -> Entries:
        """Fit ``hopper`` and ``blackwell``, by kernels and operation."""
        wanted = {(one.name, one.rows["operation"]): one for one in load_plan("alltoall").entries}
        timed = fitting.gather(
            ((one.accelerator or "", one.kernels, one.operation, one.is_notify), one)
            for table in tables
            for one in _read(table)
            if one.accelerator in _FAMILIES
            and (one.kernels, one.operation) in wanted
            and not np.isnan(one.measured_s).all()
        )
        found: Entries = {}
        transfers = [key for key in timed if not key[3]]
        for key in sorted(transfers, key=lambda key: list(_FAMILIES).index(key[0])):
            accelerator, kernels, operation, _ = key
            told = timed.get((accelerator, kernels, operation, True))
            made = _fit_entry(wanted[kernels, operation], timed[key], told)
            if timed[key].domain["nodes"].max() == 1:
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
    kernels: Mapping[Any, ExchangeFit] = calibration.exchange[rows.kernels]
    fit = kernels[rows.operation]
    rows = fitting.take(rows, np.isin(rows.places, places))
    seconds, band = rows.seconds(fit, accelerator), Band.from_fit(fit)
    if rows.is_notify:
        band = Band(*fit.notify_band) if fit.notify_band else band.widen(_NOTIFY_WIDER)
    doubts = [Doubt(rows.guess)] if rows.guess else []
    doubts += of_hardware(fit, accelerator, f"{rows.kernels} kernels")
    if fit.kind != "assumed" and rows.engine not in _OWNERS.get(rows.kernels, (rows.engine,)):
        doubts.append(Doubt(f"these kernels were not measured as {rows.engine} calls them"))
    return Estimate(seconds, fit, doubts, rows.domain, band=band)


def _refuse(rows: Exchanges) -> str | NDArray[np.object_]:
    """Why rows of a calibrated GPU cannot be priced, one for all or one for each."""
    found = find_calibrated(rows.gpu, rows.engine)
    exchange: Mapping[str, Collection[str]] = found[1].exchange if found else {}
    known = exchange.get(rows.kernels)
    if known is None:
        return unknown_name("constants for the kernels", rows.kernels, exchange)
    if rows.operation in known:
        return rows.wrong
    names = ", ".join(known)
    return f"{rows.kernels} kernels have no operation '{rows.operation}'; known: {names}"


def _fit_entry(wanted: Wanted, timed: Exchanges, told: Exchanges | None) -> dict[str, object]:
    plan, accelerator = load_plan("alltoall"), load_accelerator(timed.accelerator or "", "fit")
    kernels, measured = wanted.given, timed.measured_s
    names = list(wanted.search)
    if timed.nodes.max() > 1:
        hides = kernels["overlap"] > 1
        names += [name for name in _ACROSS if hides or name not in _FORWARDED]
    usable = (timed.wrong == "") & np.isfinite(measured) & ~timed.is_congested

    def build(values: Values) -> ExchangeFit:
        return ExchangeFit.model_construct(kind="fitted", source="", **kernels | _ABSENT | values)

    def finish(values: Values) -> Values:
        """Leave out coefficients at their lower bound."""
        return {
            name: value if "fraction" in name or value >= _NOTHING * plan.bounds[name][0] else 0.0
            for name, value in values.items()
        }

    def solve(chosen: Bools) -> ExchangeFit:
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
            lambda fit, _: rows.seconds(fit, accelerator),
            start,
            finish,
        ).solve()

    def predict(seen: Bools, held: Bools) -> Floats:
        if (usable & seen).sum() <= _FEWEST_ROWS * len(names):
            return np.full(int(held.sum()), np.nan)
        return fitting.take(timed, held).seconds(solve(seen), accelerator)

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
) -> dict[str, object]:
    """Coefficients of telling how much will come: linear in the doublings of nodes, and in tokens
    over multiprocessors or in what is carried.
    """
    told = fitting.take(told, (told.nodes > 1) & (told.measured_s > 0))
    fair, measured = ~told.is_congested, told.measured_s
    if not fair.any():
        return {}
    plan = load_plan("alltoall_notify")

    def predict(fit: ExchangeFit, chosen: Bools) -> Floats:
        return fitting.take(told, chosen).seconds(fit, accelerator)

    start = plan.begin(told.operation)
    search = Search(plan, measured, lambda values: fitted.model_copy(update=values), predict, start)
    predicted = fitting.leave_out(
        told.nodes, lambda seen, held: predict(search.solve(seen & fair), held)
    )
    found = search.find(fair).values
    return {**found, "notify_band": fitting.band_of(measured / predicted)}


def _across_as(entry: Mapping[str, object], hopper: Mapping[str, object]) -> dict[str, object]:
    """Complete an entry across nodes, where network cards decide, which are the same: as fitted on
    Hopper, where it was.
    """
    known = {name: hopper[name] for name in (*_ACROSS, *_NOTIFY) if name in hopper}
    missing = {name: value for name, value in _ASSUMED_ACROSS.items() if name not in known}
    why = "as fitted on H100, whose network cards are the same" if known else "see normal"
    source = f"{entry['source']}; across nodes assumed, {why}"
    return {**entry, **missing, **known, "source": source}


def _assume_one_sided(entry: Mapping[str, object]) -> dict[str, object]:
    """Entry of a GPU whose one-sided kernels nobody timed."""
    errors = ("num_rows", "median_error", "p90_error", "bias", "band", "covered")
    about = ("accelerator", "command", *errors, "domain")
    kept = {name: value for name, value in entry.items() if name not in about}
    return {**kept, "kind": "assumed", "source": f"As on GB200: {entry['source']}"}
