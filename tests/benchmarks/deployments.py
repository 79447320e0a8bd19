"""The deployments that are measured, and their requests."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from simulator.base.data import find_file
from simulator.base.frozen import validate
from simulator.config.workload import WorkloadSpec
from simulator.deployment.plan import DeploymentPlan
from simulator.workload.requests import load_requests
from simulator.workload.traces import RequestTrace
from tests.parts import change_plan, freeze

LONGEST_TOKENS = 1_536 + 384
"""The longest generated request: prompt and output."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A deployment with its requests: 1,024 tokens in and 256 out, give or take half of each, or a
    shipped workload.
    """

    name: str
    deployment: dict[str, Any]
    num_requests: int
    replicas: int = 1
    rate_per_s: float = 1.0
    concurrency: int | None = None
    """Requests in flight, instead of a rate."""
    workload: str | None = None
    """A shipped workload, of which the first requests are served."""
    kv_requests: int | None = None
    """A KV cache of so many of the longest requests; by default what the GPU has."""


def make_deployment(table: dict[str, Any], folder: Path = Path()) -> DeploymentPlan:
    """The plan of one replica.

    Args:
        folder: what the model's path is relative to.
    """
    return freeze({"name": "benchmark", "replicas": 1, **table}, 1, folder)


def make_case(case: Case) -> tuple[DeploymentPlan, RequestTrace]:
    """The plan and the requests."""
    plan = change_plan(make_deployment(case.deployment), replicas=case.replicas)
    if case.kv_requests is not None:
        capacity = plan.serving.capacity
        kv_bytes = capacity.cache.bytes_for(LONGEST_TOKENS) * case.kv_requests
        plan = change_plan(plan, capacity=dataclasses.replace(capacity, kv_bytes=kv_bytes))
    return plan, _shipped_trace(case) if case.workload else _generated_trace(case)


def _generated_trace(case: Case) -> RequestTrace:
    rng = np.random.default_rng(0)
    return RequestTrace(
        np.cumsum(rng.exponential(1 / case.rate_per_s, case.num_requests)),
        rng.integers(512, 1_537, case.num_requests),
        rng.integers(128, 385, case.num_requests),
        "made up",
        concurrency=case.concurrency,
    )


def _shipped_trace(case: Case) -> RequestTrace:
    spec = validate(WorkloadSpec, {"requests": case.workload}, "benchmark")
    trace = load_requests(spec, Path(), 1)
    first = slice(case.num_requests)
    return dataclasses.replace(
        trace,
        arrival_s=trace.arrival_s[first],
        num_input=trace.num_input[first],
        num_output=trace.num_output[first],
    )


def cut_deepseek(num_layers: int, num_ranks: int) -> DeploymentPlan:
    """DeepSeek-V3 with so many layers, the first three of them dense, its attention data parallel
    and its experts spread over all ranks: one for each where there are more ranks than it has.
    """
    model, num_experts = "deepseek-v3", max(DEEPSEEK_EXPERTS, num_ranks)
    with tempfile.TemporaryDirectory() as name:
        if (num_layers, num_experts) != (DEEPSEEK_LAYERS, DEEPSEEK_EXPERTS):
            shipped = find_file("workloads/models", model, "benchmark").read_text(encoding="utf-8")
            model = f"deepseek-v3-of-{num_layers}-layers.toml"
            cut = shipped.replace("repeat = 58", f"repeat = {num_layers - 3}")
            cut = cut.replace("num_experts = 256", f"num_experts = {num_experts}")
            # Whose parameters are published has 61 layers of 256 experts.
            cut = cut.partition("[published]")[0]
            Path(name, model).write_text(cut, encoding="utf-8")
        table = {
            "model": model,
            "cluster": _choose_cluster(num_ranks, Path(name)),
            "parallel": {"attention_dp": num_ranks, "ep": num_ranks},
        }
        with contextlib.chdir(name):
            return make_deployment(table, Path(name))


def _choose_cluster(num_ranks: int, folder: Path) -> str:
    """A shipped cluster that is large enough, or one that is written into ``folder``."""
    if num_ranks <= 128:
        return f"h200-sxm-{num_ranks}"
    if num_ranks <= 288:
        return "gb200-288"
    own = folder / "cluster_configs" / "more-h200s.toml"
    own.parent.mkdir()
    own.write_text(f'based_on = "h200-sxm"\nsizes = [{num_ranks}]\n', encoding="utf-8")
    return f"{own.stem}-{num_ranks}"


DEEPSEEK_LAYERS = 61
DEEPSEEK_EXPERTS = 256
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
FIRST_CHUNKS = {"scheduling": {"kind": "chunked", "reserve_full_isl": False}}
"""Admission that looks at first chunks only, so that requests lose their blocks."""
