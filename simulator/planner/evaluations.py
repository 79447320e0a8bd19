"""Deployment, words, price, headroom and row of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from simulator.config.deployment import DeploymentSpec
from simulator.planner.explore import ClusterSize, Evaluation, Explorer, deployment
from simulator.planner.headroom import headroom
from simulator.planner.search import SearchResult
from simulator.results.answer import DeploymentRow

NO_BANDS: Mapping[str, Any] = MappingProxyType({})
"""Bands of a row whose figures have none."""


class Priced(NamedTuple):
    """Prices of an evaluation, in the plan's currency."""

    per_hour: float
    power_per_hour: float
    """Electricity, where it is paid apart: a part of it."""
    per_million_output_tokens: float
    per_million_tokens: float
    """Prompts and output."""
    joules_per_output_token: float


def price_cluster(result: SearchResult, evaluation: Evaluation) -> Priced:
    """Prices at the traffic's mean rate, the whole cluster paid for.

    Power is that of the boards at their limit, times the machine room's overhead: an upper bound.
    """
    if evaluation.cluster_size is None:
        raise ValueError("nothing was found")
    machines = result.space.machines[evaluation.candidate.shape.machines]
    traffic, hourly = result.traffic, evaluation.cost_per_hour
    watts = evaluation.cluster_size.size * machines.watts_per_gpu
    electricity = watts / 1000 * result.question.power.price_per_kwh
    served = 1.0
    if (
        evaluation.outcome is not None and not evaluation.outcome.met
    ):  # what falls behind is not paid for tokens that nobody gets
        served = min(
            1.0, evaluation.outcome.output_tokens_per_s / (traffic.rate_per_s * traffic.num_output)
        )
    output_per_hour = served * traffic.rate_per_s * traffic.num_output * 3600
    all_per_hour = output_per_hour + served * traffic.rate_per_s * traffic.num_input * 3600
    return Priced(
        hourly,
        electricity,
        hourly / output_per_hour * 1e6,
        hourly / all_per_hour * 1e6,
        watts * 3600 / output_per_hour,
    )


def explorer(result: SearchResult, evaluation: Evaluation) -> Explorer:
    """Trials of an evaluation's deployment."""
    return Explorer(result.space, evaluation.candidate, result.traffic, result.question.seed)


def headroom_of(result: SearchResult, evaluation: Evaluation) -> float:
    """Times the traffic that an evaluation still carries at its size."""
    return headroom(explorer(result, evaluation), evaluation.cluster_size)


def deployment_of(result: SearchResult, evaluation: Evaluation, name: str = "") -> DeploymentSpec:
    """An evaluation as a scenario's deployment."""
    return deployment(
        result.space, evaluation.candidate, evaluation.cluster_size or ClusterSize(0, 1, 1), name
    )


def best_of_each(result: SearchResult) -> dict[str, Evaluation]:
    """The cheapest deployment of each model that meets the targets, by the model's name."""
    best: dict[str, Evaluation] = {}
    for evaluation in result.evaluations:
        if evaluation.cluster_size is not None:
            best.setdefault(result.space.models[evaluation.candidate.shape.model].name, evaluation)
    return best


def text_of(result: SearchResult, evaluation: Evaluation) -> str:
    """An evaluation in words."""
    candidate, cluster_size = evaluation.candidate, evaluation.cluster_size
    space = result.space
    if cluster_size is None:
        return space.text(candidate.shape)
    machines = space.machines[candidate.shape.machines]
    idle = (
        cluster_size.size
        - evaluation.num_gpus
        - space.spare_gpus(candidate.shape, candidate.prefill)
    )
    where = f"{cluster_size.size} x {machines.offer.cluster}" + (
        f", {evaluation.num_gpus} of {cluster_size.size} GPUs used" if idle > 0 else ""
    )
    if candidate.prefill is None:
        many = "1 replica" if cluster_size.replicas == 1 else f"{cluster_size.replicas} replicas"
        split = space.split(candidate.shape)
        return f"{space.name_model(candidate.shape)}, {many} of {split} on {where}"
    return (
        f"{space.name_model(candidate.shape)}, {cluster_size.prefill_replicas} for prompts "
        f"of {space.split(candidate.prefill)} and {cluster_size.replicas} for decoding "
        f"of {space.split(candidate.shape)} on {where}"
    )


def row_of(
    result: SearchResult, evaluation: Evaluation, bands: Mapping[str, Any] = NO_BANDS
) -> DeploymentRow:
    """The row of an evaluation with a size: what it is, what it costs, what was measured.

    Args:
        bands: ends of the figures' bands (``gpus_low``), and how they were made.
    """
    cluster_size, outcome = evaluation.cluster_size, evaluation.outcome
    if cluster_size is None or outcome is None:
        raise ValueError("nothing was found")
    space, shape = result.space, evaluation.candidate.shape
    model, variant = space.models[shape.model], space.variants[shape.model]
    prices = {
        f"cost_{name}": one for name, one in price_cluster(result, evaluation)._asdict().items()
    }
    row = {
        "deployment": text_of(result, evaluation),
        "model": model.name,
        "is_moe": model.moe is not None,
        "kind": space.kind(shape),
        "is_pruned": variant.pruning is not None,
        "quality": variant.quality,
        "cluster": space.machines[shape.machines].name_size(cluster_size.size),
        "gpus": cluster_size.size,
        "gpus_used": evaluation.num_gpus,
        "replicas": cluster_size.replicas,
        "prefill_replicas": cluster_size.prefill_replicas,
        "token_budget": evaluation.candidate.budget,
        "too_long_share": result.traffic.share_beyond(model.max_context_tokens),
        **prices,
        "worst_target": outcome.tightest,
        "worst_ratio": outcome.worst,
        **outcome.measured,
        "preempted_share": outcome.preempted_share,
        "output_tokens_per_s": outcome.output_tokens_per_s,
        "output_tokens_per_s_per_gpu": outcome.output_tokens_per_s / cluster_size.size,
    }
    return DeploymentRow.model_validate({**row, **bands})
