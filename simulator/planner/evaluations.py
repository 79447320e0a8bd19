"""Deployment, words, price and row of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from simulator.base.formats import batched_tokens
from simulator.config.deployment import DeploymentSpec
from simulator.planner.explore import ClusterSize, Evaluation, add_spares, deployment
from simulator.planner.search import SearchResult
from simulator.planner.space import Spares, count_spares
from simulator.results.answer import DeploymentRow


class FigureBands(NamedTuple):
    """Bands of the figures of a row, and probabilities that it is the cheapest."""

    method: str | None = None
    """Method by which they were made; ``None`` without bands."""
    ends: Mapping[str, float | None] = {}
    """Ends by key of the row (``gpus_low``)."""
    is_best_probability: float | None = None
    none_cheaper_probability: float | None = None


def price_cluster(result: SearchResult, evaluation: Evaluation) -> dict[str, float]:
    """Costs of an evaluation's row, in the plan's currency, and its energy: the whole cluster paid
    for, over the tokens that come out while requests arrive.

    Power is that of the boards at their limit, times the machine room's overhead: an upper bound.
    """
    traffic, hourly, outcome = result.traffic, evaluation.cost_per_hour, evaluation.outcome
    machines = result.space.machines_at(evaluation.candidate.shape)
    watts = (evaluation.size or 0) * machines.watts_per_gpu
    made_per_s = traffic.rate_per_s * traffic.num_output
    if outcome is not None:
        made_per_s = outcome.output_tokens_per_s
    output_per_hour = made_per_s * 3600
    per_token = hourly / 3600 * 1e6 / made_per_s  # as a run divides
    return {
        "cost_per_hour": hourly,
        "cost_power_per_hour": watts / 1000 * result.question.power.price_per_kwh,
        "cost_per_million_output_tokens": per_token,
        "cost_per_million_tokens": per_token / (1 + traffic.num_input / traffic.num_output),
        "cost_joules_per_output_token": watts * 3600 / output_per_hour,
    }


def deployment_of(result: SearchResult, evaluation: Evaluation, name: str = "") -> DeploymentSpec:
    """An evaluation as a scenario's deployment, with its spare replicas, on its whole cluster and
    at its whole price, electricity included.
    """
    size = evaluation.cluster_size or ClusterSize(0, 1, 1)
    size = add_spares(size, spares_of(result, evaluation))
    spec = deployment(result.space, evaluation.candidate, size, name)
    idle_gpus = max(0, (evaluation.size or 0) - gpus_used(result, evaluation))
    changes: dict[str, float] = {"idle_gpus": idle_gpus}
    if result.question.power.price_per_kwh:
        machines = result.space.machines_at(evaluation.candidate.shape)
        changes["price_per_gpu_hour"] = machines.gpu_hour
    return spec.model_copy(update=changes)


def spares_of(result: SearchResult, evaluation: Evaluation) -> Spares:
    """Spare replicas of an evaluation, beside those that keep the targets."""
    if evaluation.cluster_size is None:
        return Spares()
    return count_spares(result.space, evaluation.candidate.sides, *evaluation.cluster_size[1:])


def gpus_used(result: SearchResult, evaluation: Evaluation) -> int:
    """GPUs that an evaluation's replicas take up, spare ones among them."""
    return evaluation.num_gpus + evaluation.candidate.count_gpus(*spares_of(result, evaluation))


def best_of_each(result: SearchResult) -> dict[str, Evaluation]:
    """The cheapest deployment of each model that meets the targets, by the model's name."""
    best: dict[str, Evaluation] = {}
    for one in result.met:
        best.setdefault(result.space.models[one.candidate.shape.model].name, one)
    return best


def text_of(result: SearchResult, evaluation: Evaluation) -> str:
    """An evaluation in words, with the tokens of a step where it differs from another one in these
    only.
    """
    text, step = _describe(result, evaluation), evaluation.candidate.budget
    others = [one for one in result.evaluations if one.candidate.budget != step]
    is_alone = all(text != _describe(result, one) for one in others)
    return text if is_alone else f"{text}, {batched_tokens(step)}"


def _describe(result: SearchResult, evaluation: Evaluation) -> str:
    candidate, cluster_size = evaluation.candidate, evaluation.cluster_size
    space = result.space
    if cluster_size is None:
        return space.text(candidate.shape)
    size, used = cluster_size.size, gpus_used(result, evaluation)
    spares = spares_of(result, evaluation)
    where = f"{size} x {space.machines_at(candidate.shape).offer.cluster}"
    if size - used - space.spare_gpus(*candidate.sides) > 0:
        where += f", {used} of {size} GPUs used"
    if candidate.prefill is None:
        many = _count_replicas(cluster_size.replicas, spares.replicas)
        many += " replica" if many == "1" else " replicas"
        split = space.split(candidate.shape)
        return f"{space.name_model(candidate.shape)}, {many} of {split} on {where}"
    return (
        f"{space.name_model(candidate.shape)}, disaggregated "
        f"{_count_pool(cluster_size.prefill_replicas, spares.prefill_replicas)}P"
        f"({space.split(candidate.prefill)}) + "
        f"{_count_pool(cluster_size.replicas, spares.replicas)}D"
        f"({space.split(candidate.shape)}) on {where}"
    )


def _count_replicas(count: int, spare: int) -> str:
    """A number of replicas with the spare ones: ``4 + 1``."""
    return f"{count} + {spare}" if spare else str(count)


def _count_pool(count: int, spare: int) -> str:
    """A number of replicas before a pool's letter: ``(4 + 1)``."""
    return f"({count} + {spare})" if spare else str(count)


def row_of(
    result: SearchResult, evaluation: Evaluation, bands: FigureBands | None = None
) -> DeploymentRow:
    """The row of an evaluation with a size: what it is, what it costs, what was measured."""
    cluster_size, outcome = evaluation.cluster_size, evaluation.outcome
    if cluster_size is None or outcome is None:
        raise ValueError("nothing was found")
    space, shape = result.space, evaluation.candidate.shape
    model, variant = space.models[shape.model], space.variants[shape.model]
    bands = bands or FigureBands()
    row = {
        "deployment": text_of(result, evaluation),
        "model": model.name,
        "is_moe": model.moe is not None,
        "kind": space.kind(shape),
        "is_pruned": variant.pruning is not None,
        "quality": variant.quality,
        "cluster": space.machines_at(shape).name_size(cluster_size.size),
        "gpus": cluster_size.size,
        "gpus_used": gpus_used(result, evaluation),
        "replicas": cluster_size.replicas,
        "prefill_replicas": cluster_size.prefill_replicas,
        "spare_replicas": None
        if result.question.failures.availability is None
        else sum(spares_of(result, evaluation)),
        "token_budget": evaluation.candidate.budget,
        "too_long_share": result.traffic.share_beyond(model.max_context_tokens),
        **price_cluster(result, evaluation),
        "worst_target": outcome.binding_target,
        "worst_ratio": outcome.worst,
        **outcome.measured,
        "preempted_share": outcome.preempted_share,
        "output_tokens_per_s": outcome.output_tokens_per_s,
        "output_tokens_per_s_per_gpu": outcome.output_tokens_per_s / cluster_size.size,
        "band": bands.method,
        "is_best_probability": bands.is_best_probability,
        "none_cheaper_probability": bands.none_cheaper_probability,
        **bands.ends,
    }
    return DeploymentRow.model_validate(row)
