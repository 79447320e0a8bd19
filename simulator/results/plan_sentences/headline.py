"""The headline of an answer, and what it is made of: prices, comparisons and what is missed."""

from __future__ import annotations

from simulator.results.answer import Answer, DeploymentRow, WhyNot
from simulator.results.answer.deployments import BACKLOG
from simulator.results.formats import percent
from simulator.results.plan_sentences.confidence import ALIKE
from simulator.results.plan_text import chance, count_gpus, gpus, money, target_text, times

_SURE = 0.8
"""Probability below which the first sentence says how likely a recommendation is to hold."""
_MOST_MODELS = 3
"""Models for which the headline gives reasons; more make it unreadable."""


def headline(answer: Answer) -> str:
    """The answer in one sentence."""
    best = answer.recommended
    if best is None:
        return _state_impossible(answer)
    sure = None if answer.confidence is None else answer.confidence.meets_targets
    unsure = (
        ""
        if sure is None or sure >= _SURE
        else f" as simulated, and with a probability of {chance(sure)} allowing for the "
        "simulator's error and other samples of such traffic,"
    )
    met = (
        f"{best.model} on {gpus(best)} meets {name_targets(answer)}{unsure} "
        f"for {state_price(answer, best)}"
    )
    compared = _compare_best(answer, best)
    return f"{met}; {compared}." if compared else f"{met}."


def state_price(answer: Answer, row: DeploymentRow) -> str:
    """The price of a deployment by the hour and by the token."""
    if row.cost_per_hour == 0:
        return "no price, since the machines are there"
    by_token = money(row.cost_per_million_output_tokens, answer.currency)
    hourly = money(row.cost_per_hour, answer.currency)
    return f"{hourly} per hour, {by_token} per million output tokens"


def name_targets(answer: Answer) -> str:
    """The targets of a plan, together."""
    return "the target" if len(answer.targets) == 1 else "every target"


def name_kind(row: DeploymentRow) -> str:
    """The kind of a deployment's model."""
    if row.is_pruned:
        return "pruned model"
    return "mixture of experts" if row.is_moe else "dense model"


def state_miss(target: str, ratio: float) -> str:
    """The target that is missed, and by how much.

    >>> state_miss("ttft_s.p90", 1.5).replace("\N{MULTIPLICATION SIGN}", "x")
    'misses the time to first token (p90): 1.5x its limit'
    >>> state_miss("backlog", 3.0)
    'falls behind what comes'
    """
    if target == BACKLOG:
        return "falls behind what comes"
    if target == "attainment":
        return "keeps too few requests within their limits"
    if target.startswith("output_tokens"):
        return f"makes {percent(1 / ratio)} of the {target_text(target)} that are asked"
    if times(ratio) == "far":
        return f"misses the {target_text(target)} by far"
    return f"misses the {target_text(target)}: {times(ratio)} its limit"


def state_shortfall(target: str, ratio: float, size: int, most_of: str) -> str:
    """The target that the largest cluster misses, by how much, and what bounds its size.

    Args:
        size: GPUs of the cluster.
        most_of: what the cluster is all of; empty where it is not the largest.
    """
    return f"{state_miss(target, ratio)} on {count_gpus(size)}{f', {most_of}' if most_of else ''}"


def _compare_best(answer: Answer, best: DeploymentRow) -> str:
    """The best of the other kind against the recommended one; of another model where there is one
    kind; empty without either.
    """
    others = answer.other_models()
    if other := next((row for row in others if row.is_moe != best.is_moe), None):
        return _compare_costs(best, other, f"best {name_kind(other)}")
    listed = [model.name for model in answer.models if model.is_moe != best.is_moe]
    if listed:
        kind = "dense model" if best.is_moe else "mixture of experts"
        stopped = [
            f"{name}{_state_stop(answer.why_not_models.get(name))}"
            for name in listed[:_MOST_MODELS]
        ]
        more = f" and {len(listed) - _MOST_MODELS} more" if len(listed) > _MOST_MODELS else ""
        return f"no {kind} of the list does ({'; '.join(stopped)}{more})"
    return _compare_costs(best, others[0], "next model") if others else ""


def _state_stop(why: WhyNot | None) -> str:
    """State the obstacle of a model, behind its name: the target that it misses, or the check that
    no deployment of it passes.
    """
    if why is None:
        return ""
    return f" {why.text}" if why.target else f": {why.text}"


def _compare_costs(best: DeploymentRow, other: DeploymentRow, what: str) -> str:
    named = f"the {what}, {other.model},"
    if best.cost_per_hour == 0:
        return f"{named} needs {gpus(other)}"
    ratio = other.cost_per_hour / best.cost_per_hour
    return f"{named} costs {'the same' if abs(ratio - 1) < ALIKE else f'{times(ratio)} as much'}"


def _state_impossible(answer: Answer) -> str:
    why = answer.why_not
    text = "nothing can be run" if why is None else why.text
    nearest = "the nearest " if why is not None and why.target else ""
    return f"No deployment within the limits meets {name_targets(answer)}: {nearest}{text}."
