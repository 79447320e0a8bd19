"""``python -m tests.benchmarks.engine``: requests a second of the engine, and of the one before it
(``tests/reference``) where that is not hopeless, in CPU seconds of one process.

Each case is served in turns by both, tables filled beforehand; the best of three counts.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np

from simulator.base.frozen import validate
from simulator.config.deployment import DeploymentSpec
from simulator.deployment.plan import make_plan
from simulator.engine.step_log import ROW_STEPS
from simulator.engine.timeline import serve
from simulator.workload.traces import RequestTrace
from tests.reference.cluster import serve_reference
from tests.tables import Tables

ROUNDS = 3
DENSE = {"model": "llama-3.1-8b", "cluster": "h100-sxm-128"}
DEEPSEEK = {
    "model": "deepseek-v3",
    "cluster": "h100-sxm-128",
    "parallel": {"attention_dp": 32, "ep": 32},
}
MIXTRAL = {
    "model": "mixtral-8x7b",
    "cluster": "h100-sxm-8",
    "parallel": {"attention_dp": 8, "ep": 8},
}
LEAST = {"balancing": {"kind": "least_outstanding"}}
TIGHT = {"cache_of": 20, "scheduling": {"kind": "chunked", "reserve_full_isl": False}}
"""A KV cache of so many of the longest requests, and admission that looks at first chunks only."""
CASES = (
    ("dense, 1 replica", DENSE, 1, 100_000, 22.0, None),
    ("dense, 1 replica, 64 in flight", DENSE, 1, 100_000, 1.0, 64),
    ("dense, 1 replica, 64 in flight, KV-bound", DENSE | TIGHT, 1, 5_000, 1.0, 64),
    ("dense, 2 replicas, 64 in flight", DENSE, 2, 5_000, 1.0, 64),
    ("dense, 16 replicas, least outstanding", DENSE | LEAST, 16, 10_000, 300.0, None),
    ("dense, 128 replicas, least outstanding", DENSE | LEAST, 128, 20_000, 2_000.0, None),
    ("dense, 1,000 replicas, least outstanding", DENSE | LEAST, 1_000, 40_000, 16_000.0, None),
    ("deepseek-v3, attention DP 32, EP 32", DEEPSEEK, 1, 100_000, 100.0, None),
    ("mixtral, attention DP 8, EP 8", MIXTRAL, 1, 100_000, 100.0, None),
)
"""Name, deployment, replicas, requests, how many a second, or how many in flight."""
HOPELESS = 128
"""Replicas from which on the engine of before is not run."""


def make_case(deployment, replicas, count, rate_per_s, concurrency):
    """1,024 tokens in and 256 out, give or take half of it."""
    table = {"name": "benchmark", "replicas": 1, **deployment}
    cache_of = table.pop("cache_of", None)
    spec = validate(DeploymentSpec, table, "benchmark")
    plan = dataclasses.replace(make_plan(spec, 1, "benchmark", Path()), replicas=replicas)
    if cache_of is not None:
        kv_bytes = plan.capacity.cache.bytes_for(1_920) * cache_of
        plan = dataclasses.replace(
            plan, capacity=dataclasses.replace(plan.capacity, kv_bytes=kv_bytes)
        )
    rng = np.random.default_rng(0)
    trace = RequestTrace(
        np.cumsum(rng.exponential(1 / rate_per_s, count)),
        rng.integers(512, 1537, count),
        rng.integers(128, 385, count),
        "made up",
        concurrency=concurrency,
    )
    return plan, trace


def time_call(call):
    """CPU seconds."""
    began_s = time.process_time()
    found = call()
    return time.process_time() - began_s, found


def main():
    """Print a table in Markdown."""
    tables = Tables()
    print("| what | requests/s | us a step | before | ratio |\n|---|---|---|---|---|")
    for name, deployment, replicas, count, rate_per_s, concurrency in CASES:
        plan, trace = make_case(deployment, replicas, count, rate_per_s, concurrency)
        serve(plan, trace, fill=tables.fill)
        own, before = [], []
        for _ in range(ROUNDS):
            seconds, served = time_call(lambda: serve(plan, trace, fill=tables.fill))  # noqa: B023
            own.append(seconds)
            if replicas < HOPELESS:
                before.append(time_call(lambda: serve_reference(plan, trace, make=tables.make))[0])  # noqa: B023
        steps = served.log[:, ROW_STEPS].sum()
        rate, us = count / min(own), min(own) / steps * 1e6
        known = f"{count / min(before):,.0f} | {min(before) / min(own):.1f}x" if before else " | "
        print(f"| {name} | {rate:,.0f} | {us:.1f} | {known} |", flush=True)


if __name__ == "__main__":
    main()
