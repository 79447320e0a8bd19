"""What if: the same question under other conditions, as a question again.

``apply(Conditions(network=0.5), question, folder)`` is a :class:`Question` like any other: pass it
to :func:`~simulator.planner.search.search`, or make a :class:`~simulator.planner.space.Space` of
it, and every result (kept findings and filled tables too) follows, since all are keyed by what is
asked. ``unchanged`` says which models keep their skew because it was recorded, not drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from simulator.base.frozen import Policy
from simulator.config.capacity import CandidateModel, Question
from simulator.config.model import load_model
from simulator.config.routing import usual_routing
from simulator.planner.space import Space

_SKEW = ("sigma", "exponent")
"""Keys of routing policies that say how unevenly experts are popular; 0 is evenly."""


class Conditions(NamedTuple):
    """Factors on what a question takes as given; 1 = as asked."""

    rate: float = 1.0
    """The same requests come so many times as fast."""
    prompts: float = 1.0
    """Prompts are so many times as long."""
    network: float = 1.0
    """Every wire, inside fast domains and between them, carries so many times as many bytes a
    second; latencies stay."""
    skew: float = 1.0
    """On the spread of the logarithm of the experts' popularity (or on the exponent of a power
    law)."""
    price: float = 1.0
    """Of a GPU-hour."""


def apply(conditions: Conditions, question: Question, folder: Path) -> Question:
    """The question under other conditions.

    Raises:
        UserError: if a model or cluster is unknown.
    """
    workload: dict[str, Any] = {
        "rate_scale": question.workload.rate_scale * conditions.rate,
        "prompt_scale": question.workload.prompt_scale * conditions.prompts,
    }
    if (
        question.workload.duration_s is not None
    ):  # of the run: the same requests, not as many seconds of faster ones
        workload["duration_s"] = question.workload.duration_s / conditions.rate
    changes: dict[str, Any] = {
        "workload": question.workload.model_copy(update=workload),
        "models": tuple(_skewed(one, conditions.skew, folder) for one in question.models),
        "peak_s": None if question.peak_s is None else question.peak_s / conditions.rate,
    }
    prices = (
        [machines.price_per_gpu_hour for machines in Space(question, folder).machines]
        if conditions.price != 1
        else []
    )
    changes["clusters"] = tuple(
        offer.model_copy(
            update={
                "network_speed": offer.network_speed * conditions.network,
                "price_per_gpu_hour": prices[n] * conditions.price
                if prices
                else offer.price_per_gpu_hour,
            }
        )
        for n, offer in enumerate(question.clusters)
    )
    return question.model_copy(update=changes)


def unchanged(conditions: Conditions, question: Question, folder: Path) -> list[str]:
    """MoE models whose skew :func:`apply` cannot change: their experts' popularity was recorded, or
    a policy is not known.
    """
    if conditions.skew == 1:
        return []
    return [
        one.model
        for one in question.models
        if (routing := _routing(one, folder)) and not _spread(routing)
    ]


def _skewed(one: CandidateModel, factor: float, folder: Path) -> CandidateModel:
    if factor == 1:
        return one
    routing = _routing(one, folder)
    if routing is None:
        return one
    return one.model_copy(
        update={"routing": {**routing, **{key: routing[key] * factor for key in _spread(routing)}}}
    )


def _routing(one: CandidateModel, folder: Path) -> Policy | None:
    """The routing that a model is planned with; ``None`` of a dense one."""
    given = one.routing or load_model(one.model, "plan [models]", folder).routing
    return usual_routing(given, "")[0] if given else None


def _spread(routing: Policy) -> list[str]:
    """Keys of a policy that hold its skew."""
    return [key for key in _SKEW if isinstance(routing.get(key), int | float)]
