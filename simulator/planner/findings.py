"""What a finding comes to: its deployment, in words, its price, its headroom, and its row of the
answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from simulator.config.deployment import DeploymentSpec
from simulator.planner.explore import Explorer, Finding, Sized, deployment
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
    idle = sized.size - finding.num_gpus - space.spare_gpus(option.design, option.prefill)
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
        "preempted_share": outcome.preempted_share,
        "output_tokens_per_s": outcome.output_tokens_per_s,
        "output_tokens_per_s_per_gpu": outcome.output_tokens_per_s / sized.size,
    }
