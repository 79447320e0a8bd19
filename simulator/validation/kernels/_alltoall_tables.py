"""Tables of exchanges as their rows by GPU, kernels and operation. Four kinds of table are read,
told apart by their columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.config.calibration import ANY
from simulator.validation import Measure, require
from simulator.validation.hardware import accelerator_name
from simulator.validation.kernels import _answering as answering
from simulator.validation.kernels._alltoall_moves import VALUE_BYTES, Moves, read_moves
from simulator.validation.kernels._answering import Places
from simulator.validation.kernels._fitting import Chosen, Floats
from simulator.validation.sizes import numbers
from simulator.validation.traffic import cluster_of

_MICRO = 1e-6
"""Seconds of a microsecond."""
_GPUS_PER_NODE = 8
"""GPUs of a node in DeepEP's tables."""
_LOW_LATENCY = ("gpu", "node_num", "hidden_size", "num_token", "num_topk", "num_experts")
_NORMAL = (*_LOW_LATENCY, "dispatch_sms", "combine_sms")
_BACKENDS = (
    *("gpu", "comm_backend", "phase", "comm_dtype", "ep_size"),
    *("hidden_size", "topk", "num_experts", "num_tokens"),
)
_PUBLISHED = ("library", "hardware", "mode", "op", "ep", "tokens_per_rank", "conditions")
LAYOUTS = (_LOW_LATENCY, _NORMAL, _BACKENDS, _PUBLISHED)
"""Columns that each kind of table must have."""
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
"""DeepSeek-V3's shape, of which published figures are."""


class Part(NamedTuple):
    """Rows of a table with one GPU, one kind of kernels and one operation: a column of its
    answers.
    """

    places: Places
    gpu: str
    accelerator: str | None
    engine: str
    kernels: str
    operation: str
    moves: Moves
    held_out: NDArray[np.str_]
    """The shape, or across nodes their number: what is left out together when a fit is
    cross-validated."""
    is_congested: Chosen
    measure: int = 0
    measured: str = ""
    """The column that holds what was measured, microseconds."""
    is_whole_row: bool = True
    """Whether the rows measure nothing else."""
    is_notify: bool = False
    """Telling how much will come, and not the transfer."""
    guess: str = ""

    def measured_s(self, table: pd.DataFrame) -> Floats:
        """Measured seconds ``[n]``."""
        return numbers(table, (self.measured,))[self.measured][self.places] * _MICRO


def measures_of(table: pd.DataFrame, where: str) -> tuple[Measure, ...]:
    """Measures of a table, by its columns.

    Raises:
        UserError: if it is none of the tables that are known.
    """
    columns = set(map(str, table.columns))
    if columns >= set(_NORMAL):
        return tuple(
            Measure(f"{operation}{suffix}", f"{operation}_{part}_us", _MICRO)
            for operation in _OPERATIONS
            for part, suffix in (("transmit", ""), ("notify", "_notify"))
        )
    if columns >= set(_LOW_LATENCY):
        return tuple(Measure(name, f"{name}_avg_t_us", _MICRO) for name in _OPERATIONS)
    if columns >= set(_BACKENDS):
        return (Measure("latency", "latency", _MICRO),)
    if columns >= set(_PUBLISHED):
        return (Measure("latency", "latency_us", _MICRO),)
    require(table, _BACKENDS if "comm_backend" in columns else _LOW_LATENCY, where)
    raise UserError(f"{where}: its columns are of no kind that is known")


def parts_of(table: pd.DataFrame) -> Iterator[Part]:
    """Rows of a table by GPU, kernels and operation.

    Raises:
        UserError: if it is none of the tables that are known.
    """
    measures_of(table, "all-to-all table")
    columns = set(map(str, table.columns))
    if columns >= set(_LOW_LATENCY):
        yield from _deepep_rows(table, "normal" if columns >= set(_NORMAL) else "low_latency")
    elif columns >= set(_BACKENDS):
        yield from _backend_rows(table)
    else:
        yield from _published_rows(table)


def _deepep_rows(table: pd.DataFrame, kernels: str) -> Iterator[Part]:
    """Rows of DeepEP's own benchmark, both operations in each."""
    table = table.rename(columns={"num_token": "num_tokens", "num_topk": "topk"})
    for (gpu, engine), places in answering.group_rows(
        answering.words(table, "gpu", engine="sglang")
    ):
        rows = table.iloc[places]
        nodes = pd.to_numeric(rows["node_num"], errors="coerce")
        rows = rows.assign(num_ranks=nodes.where(nodes % 1 == 0) * _GPUS_PER_NODE)
        parts = []
        for operation in _OPERATIONS:
            value_bytes = VALUE_BYTES["fp8" if operation == "dispatch" else "bfloat16"]
            sms = rows[f"{operation}_sms"] if kernels == "normal" else 0
            own = rows.assign(value_bytes=value_bytes, sms=sms)
            parts.append(_part(own, places, gpu, engine, kernels, operation, "deepep"))
        first, second = (part.moves.wrong for part in parts)
        wrong = np.where(first == "", second, first)
        for number, part in enumerate(parts):
            part = part._replace(is_whole_row=False, moves=part.moves._replace(wrong=wrong))
            if kernels == "low_latency":
                yield part._replace(measure=number, measured=f"{part.operation}_avg_t_us")
            else:
                yield from _normal_rows(part, 2 * number)


def _normal_rows(part: Part, measure: int) -> Iterator[Part]:
    """Telling how much will come, and the transfer."""
    is_large = part.moves.num_ranks == _CONGESTED_NODES * _GPUS_PER_NODE
    tokens = np.where(is_large, part.moves.load.tokens, 0)
    yield part._replace(
        is_notify=True,
        is_congested=tokens > _CONGESTED_NOTIFY,
        measure=measure + 1,
        measured=f"{part.operation}_notify_us",
    )
    yield part._replace(
        is_congested=tokens > _CONGESTED_TOKENS[part.operation],
        measure=measure,
        measured=f"{part.operation}_transmit_us",
    )


def _backend_rows(table: pd.DataFrame) -> Iterator[Part]:
    """Rows of engines' own kernels, one operation in each."""
    keys = answering.words(table, "gpu", "comm_backend", "phase", "comm_dtype", engine=ANY)
    for (gpu, backend, phase, dtype, engine), places in answering.group_rows(keys):
        kernels, sent_as = _format_sent(backend, phase, dtype.lower())
        guess = ""
        if sent_as not in VALUE_BYTES:
            guess, sent_as = f"'{dtype}' priced as bfloat16", "bfloat16"
        if "onesided" in re.sub(r"[\W_]", "", backend.lower()):
            kernels = "one_sided"
            guess = guess or "priced as TensorRT-LLM's NVLink one-sided kernels"
        rows = table.iloc[places]
        rows = rows.assign(num_ranks=rows["ep_size"], value_bytes=VALUE_BYTES[sent_as])
        policy = "per_expert" if "_ll" in backend or "generation" in backend else "per_node"
        groups = "deepseek" if engine == "trtllm" else "none"
        part = _part(rows, places, gpu, engine, kernels, phase, groups, policy)
        yield part._replace(measured="latency", guess=guess)


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


def _published_rows(table: pd.DataFrame) -> Iterator[Part]:
    """Figures of DeepEP's and TensorRT-LLM's own pages: DeepSeek-V3's shape."""
    for key, places in answering.group_rows(
        answering.words(table, "library", "hardware", "mode", "op")
    ):
        library, hardware, mode, operation = key
        gpu = next((name for name in _PUBLISHED_GPUS if name.upper() in hardware), hardware)
        kernels = {"normal": "normal", "low-latency": "low_latency"}.get(mode, library)
        kernels = "one_sided" if "one-sided" in mode else kernels
        rows = table.iloc[places]
        usual = "bfloat16" if kernels == "one_sided" or operation == "combine" else "fp8"
        sent_as = [
            next((format_ for words, format_ in _PAYLOADS.items() if words in str(text)), usual)
            for text in rows["conditions"]
        ]
        rows = rows.assign(
            num_ranks=rows["ep"],
            num_tokens=rows["tokens_per_rank"],
            value_bytes=[VALUE_BYTES[name] for name in sent_as],
            **_DEEPSEEK,
        )
        groups = "deepep" if mode == "normal" else "none"
        policy = _POLICY.get(kernels, "per_rank")
        part = _part(rows, places, gpu, ANY, kernels, operation, groups, policy)
        ranks = part.moves.num_ranks.astype(int).astype(str)
        part = part._replace(measured="latency_us", held_out=ranks)
        if "pure RDMA" in library:
            guess = "its kernels send over the network inside a node too"
            part = _over_the_network(part)._replace(guess=guess)
        yield part


def _over_the_network(part: Part) -> Part:
    """Send every vector by the network card, as before DeepEP used NVLink for low latency."""
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
    places: Places,
    gpu: str,
    engine: str,
    kernels: str,
    operation: str,
    groups: str,
    policy: str | None = None,
) -> Part:
    name = accelerator_name(gpu)
    moves = read_moves(rows, name or "", policy or _POLICY[kernels], groups)
    shapes = answering.words(rows, "hidden_size", "topk", "num_experts").agg(" ".join, axis=1)
    nodes = np.asarray(moves.load.num_nodes, dtype=float)
    across = np.char.add("nodes ", nodes.astype(int).astype(str))
    held_out = np.where(nodes > 1, across, shapes.to_numpy(dtype=str))
    nothing = np.zeros(len(places), dtype=bool)
    return Part(places, gpu, name, engine, kernels, operation, moves, held_out, nothing)
