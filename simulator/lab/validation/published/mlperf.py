"""MLPerf Inference: language models offline (all queries at once) and as a server (random arrivals
within limits of latency).
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache, lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from simulator.base.arrays import Ints
from simulator.base.data import find_file
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import Duration, Sequences, TokenBudget
from simulator.base.reading import read_toml
from simulator.config.dtypes import DType
from simulator.lab.validation.hardware import cluster_of
from simulator.lab.validation.published import Part, Reply, extrapolate
from simulator.lab.validation.published._rows import Case, Count, GpuName, ModelName, RowTopic
from simulator.lab.validation.published._runs import Served, serve
from simulator.results.metrics import latencies
from simulator.workload.lengths.lognormal import LogNormal

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

_BEFORE_MEASURED = "trtllm@0.0.0"
"""Engine of submissions with TensorRT before 10.8, which came with TensorRT-LLM 0.17."""
_EITHER_WAY = (27451 / 16052) ** 0.5
"""Mixtral-8x7B on two H100 by TensorRT-LLM 0.17 over an earlier release (tokens/s, 128 in, 128
out): expert kernels of a release between them are taken to be half way, and may be as at either
end."""
_UNMEASURED = "expert kernels of TensorRT-LLM before release 0.17 were measured in one figure only"
Limit = Annotated[float, Field(gt=0)] | None
"""Latency limit, milliseconds."""


class _Benchmark(Frozen):
    """Queries that every submission of one benchmark serves."""

    lengths: LogNormal
    ttft_s: Duration | None = None
    """99th percentile of the time to first token that the server scenario allows."""
    tpot_s: Duration | None = None
    """99th percentile of the time per output token that the server scenario allows."""
    max_sequences: Sequences = 1024
    token_budget: TokenBudget = 8192
    source: str = Field(min_length=1)


class _Benchmarks(Frozen):
    """The file."""

    title: str
    benchmarks: dict[str, _Benchmark]


@cache
def benchmarks() -> dict[str, _Benchmark]:
    """Benchmarks by the name that results give them, without what follows it (``llama2-70b`` for
    ``llama2-70b-99.9``).
    """
    path = find_file("workloads/validation", "mlperf", "MLPerf")
    return validate(_Benchmarks, read_toml(path), str(path)).benchmarks


class _Row(Case):
    benchmark: str
    model: ModelName
    gpu: GpuName
    gpus_per_node: Count
    nodes: Count
    """Nodes that serve side by side."""
    scenario: Literal["offline", "server", "interactive"]
    engine: str
    """Engine and release; TensorRT-LLM before the first release that was measured is ``0.0.0``."""
    precision: DType
    """Format of the weights."""
    ttft_limit_ms: Limit = None
    """99th percentile that is allowed; by default the benchmark's."""
    tpot_limit_ms: Limit = None

    def parts(self) -> tuple[Case, ...]:
        return (self.model_copy(update={"nodes": 1}),)

    def join(self, *replies: Reply) -> Reply:
        (one,) = replies
        predicted, low, high = (value * self.nodes for value in one[:3])
        return one._replace(predicted=predicted, low=low, high=high)


class MLPerf(RowTopic):
    """``benchmark, model, gpu, gpus_per_node, nodes, scenario, engine, precision``: output tokens
    per second of all nodes.
    """

    row: ClassVar[type[Case]] = _Row
    title: ClassVar[str] = "MLPerf Inference"

    def plan_key(self, case: _Row) -> Hashable:
        return case.model_copy(update={"gpus_per_node": 1})

    def predict(self, case: _Row) -> Reply:
        value, served = _best_split(case)
        reply, tp = served.reply(value), served.plan.placement.layout.tp
        if case.engine == _BEFORE_MEASURED and served.plan.placement.experts is not None:
            unknown = Part("early expert kernels", 1.0, 1 / _EITHER_WAY, _EITHER_WAY)
            reply = reply._replace(
                low=reply.low / _EITHER_WAY,
                high=reply.high * _EITHER_WAY,
                status=extrapolate(reply.status, _UNMEASURED),
                parts=(*reply.parts, unknown),
            )
        because = f"{case.gpus_per_node // tp} replicas of TP {tp}; {reply.because}"
        return reply._replace(because=because)


def _best_split(case: _Row) -> tuple[float, Served]:
    """Output tokens per second of a node by the best of the splits that fit, since submissions are
    tuned: replicas of 1, 2, 4, ... GPUs.
    """
    whys = []
    best: tuple[float, Served] | None = None
    for tp in (2**i for i in range(case.gpus_per_node.bit_length())):
        if case.gpus_per_node % tp:
            continue
        try:
            value, served = _find_throughput(case.model_copy(update={"gpus_per_node": tp}))
        except UserError as error:
            whys.append(str(error))
            continue
        value *= case.gpus_per_node // tp
        if best is not None and value < best[0]:
            break  # once splitting further loses, it goes on losing
        best = value, served
    if best is None:
        raise UserError(whys[-1] if whys else "no split fits")
    return best


@lru_cache(maxsize=8)
def _find_throughput(case: _Row) -> tuple[float, Served]:
    """Output tokens per second of one replica, which takes all GPUs of the case."""
    benchmark = _benchmark(case)
    deployment = _deployment(case)
    if case.scenario == "offline":
        batch = benchmark.max_sequences
        short = serve(deployment, *_queries(benchmark, _FIRST_TURNS * batch))
        wanted = int(_OFFLINE_S * short.output_per_s / float(short.requests["num_output"].mean()))
        count = int(np.clip(wanted, _FIRST_TURNS * batch, _MOST_TURNS * batch))
        offline = serve(deployment, *_queries(benchmark, count))
        return offline.output_per_s, offline
    changes = {"scenario": "offline", "ttft_limit_ms": None, "tpot_limit_ms": None}
    _, offline = _find_throughput(case.model_copy(update=changes))
    limits = (
        case.ttft_limit_ms / 1e3 if case.ttft_limit_ms else benchmark.ttft_s,
        case.tpot_limit_ms / 1e3 if case.tpot_limit_ms else benchmark.tpot_s,
    )
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


def _benchmark(case: _Row) -> _Benchmark:
    found = benchmarks().get(case.benchmark)
    if found is None:
        raise UserError(
            f"'{case.benchmark}': what its queries are is not known; "
            f"known: {', '.join(benchmarks())}"
        )
    return found


def _deployment(case: _Row) -> dict[str, object]:
    benchmark = _benchmark(case)
    return {
        "model": case.model,
        "cluster": cluster_of(case.gpu, case.gpus_per_node),
        "engine": case.engine,
        "weight_dtype": case.precision,
        "kv_dtype": "fp8",
        "parallel": {"tp": case.gpus_per_node},
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
    deployment: dict[str, Any], benchmark: _Benchmark, rate: float, limits: tuple[float | None, ...]
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


def _queries(benchmark: _Benchmark, count: int) -> tuple[Ints, Ints]:
    return benchmark.lengths.draw(count, np.random.default_rng(0))


def _meets(served: Served, limits: tuple[float | None, ...]) -> bool:
    found = latencies(served.requests)
    return all(
        limit is None or found[name].quantile(0.99) <= limit
        for name, limit in zip(("ttft_s", "tpot_s"), limits, strict=True)
    )
