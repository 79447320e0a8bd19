"""The answer: what to deploy, what else would do, what it hangs on; every number in it can be
traced to a finding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from simulator.config.deployment import DeploymentSpec
from simulator.planner.explore import Explorer, Finding, Sized, deployment, sized_as_found
from simulator.planner.room import headroom
from simulator.planner.search import Found


class Priced(NamedTuple):
    """What a finding costs."""

    per_hour: float
    power_per_hour: float
    """Electricity, where it is paid apart: a part of it."""
    per_million_output_tokens: float
    per_million_tokens: float
    """Prompts and output."""
    joules_per_output_token: float


def priced(found: Found, finding: Finding) -> Priced:
    """Prices at the traffic's mean rate, the whole cluster paid for.

    Power is that of the boards at their limit, times the machine room's overhead: an upper bound.
    """
    if finding.sized is None:
        raise ValueError("nothing was found")
    machines = found.space.machines[finding.option.design.machines]
    traffic, hourly = found.traffic, finding.cost_per_hour
    watts = finding.sized.size * machines.watts_per_gpu
    electricity = watts / 1000 * found.question.power.price_per_kwh
    served = 1.0
    if (
        finding.outcome is not None and not finding.outcome.met
    ):  # what falls behind is not paid for tokens that nobody gets
        served = min(
            1.0, finding.outcome.output_tokens_per_s / (traffic.rate_per_s * traffic.num_output)
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


def explorer(found: Found, finding: Finding) -> Explorer:
    """Trials of a finding's deployment."""
    return Explorer(found.space, finding.option, found.traffic, found.question.seed)


def headroom_of(found: Found, finding: Finding) -> float:
    """How many times the traffic a finding still carries at its size."""
    return headroom(explorer(found, finding), finding.sized)


def deployment_of(found: Found, finding: Finding, name: str = "") -> DeploymentSpec:
    """A finding as a scenario's deployment."""
    return deployment(found.space, finding.option, finding.sized or Sized(0, 1, 1), name)


def best_of_each(found: Found) -> dict[str, Finding]:
    """By model, the cheapest deployment that meets the targets."""
    best: dict[str, Finding] = {}
    for finding in found.findings:
        if finding.sized is not None:
            best.setdefault(found.space.models[finding.option.design.model].name, finding)
    return best


def text_of(found: Found, finding: Finding) -> str:
    """A finding in words."""
    option, sized = finding.option, finding.sized
    space = found.space
    if sized is None:
        return space.text(option.design)
    machines = space.machines[option.design.machines]
    idle = sized.size - finding.num_gpus - space.spare_gpus(machines)
    where = f"{sized.size} x {machines.offer.cluster}" + (
        f", {finding.num_gpus} of {sized.size} GPUs used" if idle > 0 else ""
    )
    if option.prefill is None:
        many = "1 replica" if sized.replicas == 1 else f"{sized.replicas} replicas"
        return (
            f"{space.formatted(option.design)}, {many} of {space.split(option.design)} on {where}"
        )
    return (
        f"{space.formatted(option.design)}, {sized.prefill_replicas} for prompts "
        f"of {space.split(option.prefill)} and {sized.replicas} for decoding "
        f"of {space.split(option.design)} on {where}"
    )


def summary(found: Found, doubts: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer as JSON: numbers, no objects.

    Args:
        doubts: what :func:`simulator.planner.uncertainty.doubts` found, to be part of it.
    """
    # They draw on this module, and are put together here.
    from simulator.planner import words
    from simulator.planner.basis import basis
    from simulator.planner.crossover import crossover_of
    from simulator.planner.handover import handover
    from simulator.planner.pareto import pareto
    from simulator.planner.row_bands import held
    from simulator.planner.sizes import around
    from simulator.planner.why_not import nearest, of_each_model

    met = [finding for finding in found.findings if finding.sized is not None]
    doubted = dict(doubts or {})
    bands: list[dict[str, Any]] = doubted.pop("bands", None) or [{} for _ in met]
    rows = [row_of(found, finding) | band for finding, band in zip(met, bands, strict=True)]
    by_option = {finding.option: row for finding, row in zip(met, rows, strict=True)}
    answer: dict[str, Any] = {
        "name": found.question.name,
        "seed": found.question.seed,
        "currency": found.question.power.currency,
        "targets": _targets(found),
        "models": [
            {"name": model.name, "is_moe": model.moe is not None} for model in found.space.models
        ],
        "spare": _spare(found),
        "clusters": [machines.offer.cluster for machines in found.space.machines],
        "num_simulated": _num_simulated(found),
        "num_legal": found.num_legal,
        "num_ruled_out": sum(found.ruled.counts.values()),
        "ruled_out": [
            {"reason": reason, "count": count, "example": found.ruled.examples[reason]}
            for reason, count in found.ruled.counts.items()
        ],
        "traffic": {
            "rate_per_s": found.traffic.rate_per_s,
            "num_requests": found.traffic.num_requests,
            "lead_requests": found.traffic.lead,
            "lasts_s": found.traffic.duration_s,
            "stay_s": found.traffic.stay_s,
            "is_steady": found.traffic.is_steady,
            "lengthened_from": found.asked_requests,
            "mean_input": found.traffic.num_input,
            "mean_output": found.traffic.num_output,
        },
        "clusters_ruled_out": {
            one.offer.cluster: one.beyond for one in found.space.machines if one.beyond
        },
        "why_not_models": of_each_model(found),
        "best_of_each_model": {
            name: by_option[finding.option] for name, finding in best_of_each(found).items()
        },
        "candidates": rows,
        "pareto": pareto(found, bands),
        "crossover": doubted.pop("crossover") if "crossover" in doubted else crossover_of(found),
    }
    if met:
        room = doubted.pop("headroom") if "headroom" in doubted else headroom_of(found, met[0])
        sure = doubted.get("confidence") or {}
        ends = sure.get("headroom_low"), sure.get("headroom_high")
        answer["recommended"] = (
            rows[0] | {"headroom": room} | (held("headroom", room, ends) if sure else {})
        )
        answer["sizes"] = doubted.pop("sizes") if "sizes" in doubted else around(found, met[0])
        answer["basis"] = basis(found)
        answer["handover"] = handover(found)
    else:
        answer["why_not"] = nearest(found)
    answer |= doubted
    answer["headline"], answer["reasons"] = words.headline(answer), words.reasons(answer)
    return answer


def _num_simulated(found: Found) -> int:
    """Searches for a size; once for deployments whose first round was of all requests, however many
    replicas they turned out to need.
    """
    first = [replace(finding, option=sized_as_found(finding)) for finding in found.first]
    return len(first) + sum(finding not in first for finding in found.findings)


def _spare(found: Found) -> dict[str, int]:
    """What is held free for failures; GPUs of the recommended machines, or of the first."""
    best = next((finding for finding in found.findings if finding.sized is not None), None)
    machines = found.space.machines[best.option.design.machines if best is not None else 0]
    return {"nodes": found.question.spare.nodes, "gpus": found.space.spare_gpus(machines)}


def _targets(found: Found) -> dict[str, float]:
    """Limits by target, named as in an outcome."""
    targets = found.question.targets
    limits = {
        f"{name}.{level}": limit
        for name in ("ttft_s", "tpot_s", "e2e_s")
        for level, limit in getattr(targets, name).limits().items()
    }
    shares = {"attainment": targets.attainment, "output_tokens_per_s": targets.output_tokens_per_s}
    return limits | {name: limit for name, limit in shares.items() if limit is not None}


def row_of(found: Found, finding: Finding) -> dict[str, Any]:
    """A finding with a size: what it is, what it costs, what was measured."""
    sized, outcome = finding.sized, finding.outcome
    if sized is None or outcome is None:
        raise ValueError("nothing was found")
    machines = found.space.machines[finding.option.design.machines]
    return {
        "deployment": text_of(found, finding),
        "model": found.space.models[finding.option.design.model].name,
        "is_moe": found.space.models[finding.option.design.model].moe is not None,
        "kind": found.space.kind(finding.option.design),
        "is_pruned": found.space.candidates[finding.option.design.model].pruning is not None,
        "quality": found.space.candidates[finding.option.design.model].quality,
        "cluster": machines.named(sized.size),
        "gpus": sized.size,
        "gpus_used": finding.num_gpus,
        "replicas": sized.replicas,
        "prefill_replicas": sized.prefill_replicas,
        "token_budget": finding.option.budget,
        "too_long_share": found.traffic.share_beyond(
            found.space.models[finding.option.design.model].max_context_tokens
        ),
        **{f"cost_{name}": value for name, value in priced(found, finding)._asdict().items()},
        "worst_target": outcome.tightest,
        "worst_ratio": outcome.worst,
        **outcome.measured,
        "output_tokens_per_s": outcome.output_tokens_per_s,
        "output_tokens_per_s_per_gpu": outcome.output_tokens_per_s / sized.size,
    }
