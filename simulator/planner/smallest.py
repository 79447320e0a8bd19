"""Smallest deployments of some models on one kind of machines, for a comparison on equally many
GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.planner.space import Space
from simulator.scenario.jobs import load_question
from simulator.scenario.question import ask

_LEAST_S = 300.0
"""Seconds of arrivals of a comparison: a queue that grows is long by then."""
_MOST_REQUESTS = 50_000
"""Requests of a comparison, at most: some ten seconds of simulation."""


def compare(
    models: str,
    cluster: str,
    rate: float,
    num_input: int,
    num_output: int,
    limits: Mapping[str, str],
    num_gpus: int | None = None,
) -> dict[str, object]:
    """Put a comparison into the keys of a scenario: every model in its smallest replicas, as many
    as there is room for on the GPUs.

    Args:
        models: names or paths, between commas.
        cluster: kind of machines, perhaps with the number of GPUs (``h100-sxm-8``).
        rate: requests a second.
        num_input: tokens of each prompt.
        num_output: tokens of each answer.
        limits: seconds of each request by latency (``ttft_s``).
        num_gpus: GPUs of each model; ``None`` = the fewest on which every one fits.

    Raises:
        UserError: if a model does not fit, a limit is of a percentile, or the machines do not come
            in that number, with what would do.
    """
    kind, _, number = cluster.rpartition("-")
    if number.isdecimal() and cluster not in available_files("cluster_configs"):
        cluster, num_gpus = kind, num_gpus or int(number)
    slo = {key: _read_limit(text) for key, text in limits.items()}
    asked = ask(models, cluster, rate, num_input, num_output, limits)
    steady = min(math.ceil(_LEAST_S * rate), _MOST_REQUESTS)
    asked["workload"]["num_requests"] = max(asked["workload"]["num_requests"], steady)
    free = [{"cluster": cluster, "price_per_gpu_hour": 0.0}]  # a comparison needs no price
    question = load_question({**asked, "clusters": free})
    space = Space(question, question.folder)
    (machines,) = space.machines
    shapes = [space.find_smallest(n, num_input + num_output) for n in range(len(space.models))]
    largest = max(shapes, key=lambda shape: shape.num_ranks)
    least = machines.holding(largest.num_ranks)
    size = num_gpus or least
    if size not in machines.sizes:
        sizes = ", ".join(map(str, machines.sizes))
        raise UserError(f"--gpus {size}: {cluster} comes in {sizes}")
    if size < largest.num_ranks:
        needs = f"{space.text(largest)} needs {largest.num_ranks}"
        raise UserError(f"--gpus {size}: {needs}; --gpus {least} does")
    deployments = [
        {
            "name": f"{space.models[n].name}, {size // shape.num_ranks} x {space.split(shape)}",
            "model": question.models[n].model,
            "cluster": machines.name_size(size),
            "replicas": size // shape.num_ranks,
            "idle_gpus": size % shape.num_ranks,
            "memory_fraction": shape.memory_fraction,
            "parallel": {
                key: getattr(shape, key)
                for key in ("tp", "attention_dp", "ep", "pp")
                if getattr(shape, key) > 1
            },
        }
        for n, shape in enumerate(shapes)
    ]
    return {
        "name": f"{models} on {machines.name_size(size)}",
        "workload": {**asked["workload"], "slo": slo},
        "deployments": [{key: one[key] for key in one if one[key]} for one in deployments],
    }


def _read_limit(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"'{text}' is no limit of a run: give seconds of each request, such as 1.5; "
            "percentiles are what a plan keeps"
        ) from None
