"""MLPerf Inference: language models offline (all queries at once) and as a server (random arrivals
within limits of latency).
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.results.metrics import latencies
from simulator.validation import OK
from simulator.validation.published import Part, Reply
from simulator.validation.published._cells import number, whole
from simulator.validation.published._names import (
    accelerator_of,
    cluster_of,
    engine_of,
    model_name,
    precision_of,
    released,
)
from simulator.validation.published._queries import Benchmark, benchmarks
from simulator.validation.published._scores import figures, mixture_ratios, with_ratios
from simulator.validation.published._serve import Served, serve
from simulator.validation.published._sweep import answers

_OFFLINE_S, _FIRST_TURNS, _MOST_TURNS = 600.0, 3, 60
"""Shortest run that the rules allow. How many queries fill it follows from a shorter run of so many
full batches."""
_SERVER_S, _FIRST_S, _MOST_QUERIES = 1800.0, 300.0, 40_000
"""Length of a server run that a rate is judged by, after a short one. Submitted ones take about an
hour (LoadGen's 270,336 queries): near the largest rate the batch grows for many minutes before the
queue does, so a short run alone would pass rates that cannot last."""
_STEPS, _SLOWER = 8, 0.8
"""Rates that are tried: so much slower each, until one keeps within the limits, then halving what
is left."""

_TENSORRT, _MEASURED_TENSORRT = re.compile(r"TensorRT (\d+)\.(\d+)"), (10, 8)
"""TensorRT of TensorRT-LLM 0.17."""

_EITHER_WAY = (27451 / 16052) ** 0.5
"""Mixtral-8x7B on two H100 by TensorRT-LLM 0.17 over an earlier release (tokens/s, 128 in, 128
out): expert kernels of a release between them are taken to be half way, and may be as at either
end."""


class _Row(NamedTuple):
    benchmark: str
    model: str
    accelerator: str
    num_gpus: int
    """Of one node."""
    scenario: str
    dtype: str
    engine: str
    is_old: bool
    """Whether the engine's release is older than those whose kernels were measured."""
    ttft_s: float
    """99th percentile that the row says is allowed, 0 where it does not; likewise below."""
    tpot_s: float


class MLPerf(Frozen):
    """``accelerator, accel_per_node, nodes, model, scenario, tokens_per_s``; nodes are taken to
    serve side by side.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "accelerator",
        "accel_per_node",
        "nodes",
        "model",
        "scenario",
        "submitter",
    )

    def replies(self, table: pd.DataFrame, tick: Progress) -> list[Reply]:
        read: list[tuple[_Row, int] | UserError] = []
        for _, row in table.iterrows():
            try:
                read.append((_read(row), whole(row, "nodes")))
            except UserError as error:
                read.append(error)
        cases = [case for case, _ in (found for found in read if not isinstance(found, UserError))]
        found = answers(
            cases, _answer, lambda case: case._replace(num_gpus=0), "MLPerf Inference", tick
        )
        return [
            Reply.of(one)
            if isinstance(one, UserError)
            else _scaled(Reply.of(found[one[0]]), one[1])
            for one in read
        ]

    def scores(self, table: pd.DataFrame, replies: list[Reply]) -> pd.DataFrame:
        if "tokens_per_s" not in table:
            return figures([], [], [], [], pd.Series(dtype=float), [])
        rounds = (
            table["round"].astype(str) if "round" in table else pd.Series("", index=table.index)
        )
        systems = (
            table["system"].astype(str) if "system" in table else table["accelerator"].astype(str)
        )
        groups = [
            f"MLPerf {model} {scenario.lower()}"
            for model, scenario in zip(table["model"], table["scenario"].astype(str), strict=True)
        ]
        machines = [
            f"{when} {who} {system} {scenario}"
            for when, who, system, scenario in zip(
                rounds, table["submitter"], systems, table["scenario"], strict=True
            )
        ]
        subjects = [
            f"{model} {machine}" for model, machine in zip(table["model"], machines, strict=True)
        ]
        rows = figures(
            groups,
            subjects,
            ["throughput"] * len(table),
            ["tokens/s"] * len(table),
            table["tokens_per_s"],
            replies,
        )
        return with_ratios(rows, mixture_ratios("MLPerf", rows, table["model"], machines))


def _read(row: pd.Series) -> _Row:
    name = str(row["model"]).strip().lower()
    benchmark = next(
        (key for key in sorted(benchmarks(), key=len, reverse=True) if name.startswith(key)), None
    )
    if benchmark is None:
        raise UserError(
            f"'{row['model']}': what its queries are is not known; known: {', '.join(benchmarks())}"
        )
    scenario = str(row["scenario"]).strip().lower()
    if scenario not in ("offline", "server", "interactive"):
        raise UserError(f"scenario '{row['scenario']}' is not modelled")
    accelerator = accelerator_of(str(row["accelerator"]))
    model = model_name(name)
    return _Row(
        benchmark,
        model,
        accelerator.name,
        whole(row, "accel_per_node"),
        scenario,
        released(
            _dtype(
                row,
                accelerator.fp8_flops_per_s is not None,
                accelerator.fp4_flops_per_s is not None,
            ),
            model,
        ),
        _engine(str(row.get("framework", ""))),
        _is_old(str(row.get("framework", ""))),
        _or(number(row, "ttft_limit_ms") / 1e3, 0.0),
        _or(number(row, "tpot_limit_ms") / 1e3, 0.0),
    )


def _engine(framework: str) -> str:
    """The engine; where TensorRT is named, TensorRT-LLM before 1.0, since later releases run
    without it unless asked to.
    """
    if not _TENSORRT.search(framework):
        return engine_of(framework) or "vllm"
    return "trtllm@0.0.0" if _is_old(framework) else "trtllm@0.17.0"


def _is_old(framework: str) -> bool:
    found = _TENSORRT.search(framework)
    return found is not None and (int(found[1]), int(found[2])) < _MEASURED_TENSORRT


def _dtype(row: pd.Series, has_fp8: bool, has_fp4: bool) -> str:
    """As the row says; else the narrowest that the GPU multiplies, which is what is submitted."""
    try:
        return precision_of(str(row.get("weight_dtype", "")))
    except UserError:
        return "nvfp4" if has_fp4 else "fp8" if has_fp8 else "int8"


def _scaled(reply: Reply, nodes: int) -> Reply:
    return reply._replace(
        predicted=reply.predicted * nodes, low=reply.low * nodes, high=reply.high * nodes
    )


def _answer(case: _Row) -> Reply:
    """The best of the splits that fit, since submissions are tuned: replicas of 1, 2, 4, ...
    GPUs.
    """
    whys = []
    best: tuple[float, Served] | None = None
    for tp in (2**i for i in range(case.num_gpus.bit_length())):
        if case.num_gpus % tp:
            continue
        try:
            value, served = _reached(case._replace(num_gpus=tp))
        except UserError as error:
            whys.append(str(error))
            continue
        value *= case.num_gpus // tp
        if best is not None and value < best[0]:
            break  # once splitting further loses, it goes on losing
        best = value, served
    if best is None:
        raise UserError(whys[-1] if whys else "no split fits")
    reply = best[1].reply(best[0])
    if case.is_old and best[1].plan.placement.experts is not None:
        why = "expert kernels of TensorRT-LLM before release 0.17 were measured in one figure only"
        status = f"extrapolated: {why}" if reply.status == OK else f"{reply.status}; {why}"
        unknown = Part("early expert kernels", 1.0, 1 / _EITHER_WAY, _EITHER_WAY)
        reply = reply._replace(
            low=reply.low / _EITHER_WAY,
            high=reply.high * _EITHER_WAY,
            status=status,
            parts=(*reply.parts, unknown),
        )
    return reply._replace(
        because=(
            f"{case.num_gpus // best[1].plan.placement.layout.tp} replicas of "
            f"TP {best[1].plan.placement.layout.tp}; {reply.because}"
        )
    )


@lru_cache(maxsize=8)
def _reached(case: _Row) -> tuple[float, Served]:
    """Output tokens a second of one replica, which takes all GPUs of the case."""
    benchmark = benchmarks()[case.benchmark]
    deployment = _deployment(case)
    if case.scenario == "offline":
        batch = benchmark.max_sequences
        short = serve(deployment, *_queries(benchmark, _FIRST_TURNS * batch))
        wanted = int(_OFFLINE_S * short.output_per_s / float(short.requests["num_output"].mean()))
        count = int(np.clip(wanted, _FIRST_TURNS * batch, _MOST_TURNS * batch))
        offline = serve(deployment, *_queries(benchmark, count))
        return offline.output_per_s, offline
    _, offline = _reached(case._replace(scenario="offline", ttft_s=0.0, tpot_s=0.0))
    limits = (case.ttft_s or benchmark.ttft_s, case.tpot_s or benchmark.tpot_s)
    if not all(limits):
        raise UserError(
            f"{case.benchmark}: the limits of its server scenario are not known; "
            "add ttft_limit_ms and tpot_limit_ms"
        )
    mean_output = float(offline.requests["num_output"].mean())
    # An offline run ends with few requests at once, so a server that is never empty may do better.
    low, high = 0.0, offline.output_per_s / mean_output * 1.15
    best = offline
    for _ in range(_STEPS):
        rate = (low + high) / 2 if low else high * _SLOWER
        served = _lasting(deployment, benchmark, rate, limits)
        if served is not None:
            low, best = rate, served
        else:
            high = rate
    if not low:
        raise UserError("no rate keeps within the limits of latency")
    return low * mean_output, best


def _deployment(case: _Row) -> dict[str, Any]:
    benchmark = benchmarks()[case.benchmark]
    return {
        "model": case.model,
        "cluster": cluster_of(case.accelerator, case.num_gpus),
        "engine": case.engine,
        "weight_dtype": case.dtype,
        "kv_dtype": "fp8",
        "parallel": {"tp": case.num_gpus},
        "free_memory_fraction": 0.95,
        # TensorRT-LLM's MAX_UTILIZATION, as NVIDIA's submissions set it, admits and evicts as vLLM
        # does.
        "scheduling": {
            "kind": "chunked",
            "max_sequences": benchmark.max_sequences,
            "token_budget": benchmark.token_budget,
        },
    }


def _lasting(
    deployment: dict[str, Any], benchmark: Benchmark, rate: float, limits: tuple[float | None, ...]
) -> Served | None:
    """A server run at a rate, if it keeps within the limits of latency."""
    served = None
    for seconds in (_FIRST_S, _SERVER_S):
        served = serve(
            deployment, *_queries(benchmark, int(np.clip(rate * seconds, 500, _MOST_QUERIES))), rate
        )
        if not _meets(served, limits):
            return None
    return served


def _or(value: float, default: float) -> float:
    return value if math.isfinite(value) and value > 0 else default


def _queries(benchmark: Benchmark, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return benchmark.lengths.draw(count, np.random.default_rng(0))


def _meets(served: Served, limits: tuple[float | None, ...]) -> bool:
    found = latencies(served.requests)
    return all(
        limit is None or found[name].quantile(0.99) <= limit
        for name, limit in zip(("ttft_s", "tpot_s"), limits, strict=True)
    )
