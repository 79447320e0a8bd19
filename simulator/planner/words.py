"""The answer in plain sentences, from its numbers alone: what to deploy, what it costs, what it is
held against, what binds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.planner.confidence_text import ALIKE, tell_confidence, tell_headroom
from simulator.planner.spare_text import explain_idle, explain_losses
from simulator.planner.trial import BACKLOG
from simulator.results.formats import seconds
from simulator.results.plan_text import (
    chance,
    gpus,
    is_floor,
    money,
    percent,
    target_text,
    times,
    value_text,
)

_SURE = 0.8
"""A recommendation that is less likely to hold says so in its first sentence."""
_STARTS = 0.95
"""A recommendation that is less likely to start says so before anything else."""
_MOST_MODELS = 3
"""That the headline gives reasons for."""
_BINDS = 0.9
"""Of its limit: from here on a target is what decides; below it is merely the one that is
closest."""
_OFTEN_PREEMPTED = 0.02
"""Share of requests that are computed again from which on it is worth a word."""


def headline(answer: dict[str, Any]) -> str:
    """The answer in one sentence."""
    best = answer.get("recommended")
    if best is None:
        return _impossible(answer)
    sure = (answer.get("confidence") or {}).get("meets_targets")
    unsure = (
        ""
        if sure is None or sure >= _SURE
        else f", with a probability of {chance(sure)} of what the simulator may be off,"
    )
    met = (
        f"{best['model']} on {gpus(best)} meets {_every(answer)}{unsure} for {price(answer, best)}"
    )
    return f"{met}; {against(answer)}." if against(answer) else f"{met}."


def reasons(answer: dict[str, Any]) -> list[str]:
    """What else a buyer asks, a sentence each."""
    return list(_reasons(answer) if answer.get("recommended") else _why_not(answer))


def price(answer: dict[str, Any], row: dict[str, Any]) -> str:
    """What a row costs by the hour and by the token."""
    currency = answer.get("currency", "USD")
    if row["cost_per_hour"] == 0:
        return "no price, since the machines are there"
    by_token = money(row["cost_per_million_output_tokens"], currency)
    return f"{money(row['cost_per_hour'], currency)} per hour, {by_token} per million output tokens"


def against(answer: dict[str, Any]) -> str:
    """The best of the other kind against the recommended one; of another model where there is one
    kind; empty without either.
    """
    best = answer["recommended"]
    rows = [
        row for name, row in answer.get("best_of_each_model", {}).items() if name != best["model"]
    ]
    other_kind = [row for row in rows if row["is_moe"] != best["is_moe"]]
    kind = "dense model" if best["is_moe"] else "mixture of experts"
    if other_kind:
        other = min(other_kind, key=lambda row: (row["cost_per_hour"], row["gpus"]))
        return _compared(best, other, f"best {_kind(other)}")
    listed = [
        model["name"] for model in answer.get("models", []) if model["is_moe"] != best["is_moe"]
    ]
    if listed:
        why = answer.get("why_not_models") or {}
        told = [
            f"{name}{_fails(why[name])}" if name in why else name for name in listed[:_MOST_MODELS]
        ]
        more = f" and {len(listed) - _MOST_MODELS} more" if len(listed) > _MOST_MODELS else ""
        return f"no {kind} of the list does ({'; '.join(told)}{more})"
    return (
        _compared(
            best, min(rows, key=lambda row: (row["cost_per_hour"], row["gpus"])), "next model"
        )
        if rows
        else ""
    )


def missed(name: str, ratio: float) -> str:
    """That a target is missed, and by how much.

    >>> missed("ttft_s.p90", 1.5).replace("\N{MULTIPLICATION SIGN}", "x"), missed("backlog", 3.0)
    ('misses the time to first token (p90) by 1.5x', 'falls behind what comes')
    """
    if name == BACKLOG:
        return "falls behind what comes"
    by = "by far" if times(ratio) == "far" else f"by {times(ratio)}"
    return f"misses the {target_text(name)} {by}"


def _fails(why: dict[str, Any]) -> str:
    """Why a model does not do, behind its name: what it misses, or what no deployment of it
    passes.
    """
    text = str(why.get("text", "cannot be run"))
    return f" {text}" if "target" in why else f": {text}"


def _kind(row: dict[str, Any]) -> str:
    if row.get("is_pruned"):
        return "pruned model"
    return "mixture of experts" if row["is_moe"] else "dense model"


def _compared(best: dict[str, Any], other: dict[str, Any], what: str) -> str:
    mine, theirs = best["cost_per_hour"], other["cost_per_hour"]
    if mine == 0:
        return f"the {what}, {other['model']}, needs {gpus(other)}"
    ratio = theirs / mine
    if abs(ratio - 1) < ALIKE:
        return f"the {what}, {other['model']}, costs the same"
    return f"the {what}, {other['model']}, costs {times(ratio)} as much"


def _every(answer: dict[str, Any]) -> str:
    return "the target" if len(answer.get("targets", {})) == 1 else "every target"


def _reasons(answer: dict[str, Any]) -> Iterator[str]:
    best, limits = answer["recommended"], answer.get("targets", {})
    yield from _may_not_start(answer)
    yield f"Deploy {best['deployment']}, {best['token_budget']:,} tokens a step."
    binding = best["worst_target"]
    kept = [
        (
            f"{target_text(name)}: {value_text(name, best[name])}, "
            f"{'asked' if is_floor(name) else 'limit'} {value_text(name, limit)}"
        )
        for name, limit in sorted(limits.items(), key=lambda item: item[0] != binding)
        if best.get(name) is not None
    ]
    if kept:
        first = "What binds is" if best["worst_ratio"] >= _BINDS else "Closest to its limit is"
        yield f"{first} the {kept[0]}{''.join(f'; {one}' for one in kept[1:])}."
    yield from _unscored(answer)
    yield from explain_idle(answer)
    yield from _traffic(answer)
    yield from tell_headroom(answer)
    yield from _other_sizes(answer)
    text = (answer.get("moe_vs_dense") or {}).get("text")
    if text:
        yield str(text)
    else:
        yield from _others(answer)
    yield from _left_out(answer)
    yield from explain_losses(answer)
    yield from tell_confidence(answer)


def _may_not_start(answer: dict[str, Any]) -> Iterator[str]:
    """A sentence where the memory of a GPU may not do."""
    sure = (answer.get("confidence") or {}).get("starts")
    if sure is not None and sure < _STARTS:
        yield (
            f"It may not start: that its weights and one of the longest requests fit in a GPU's "
            f"memory has a probability of {chance(sure)}, going by logs of engines."
        )


def _unscored(answer: dict[str, Any]) -> Iterator[str]:
    """Models that nobody scored, which are held against others as if all answers were equally
    good.
    """
    rows = answer.get("best_of_each_model", {})
    without = [name for name, row in rows.items() if row.get("quality") is None]
    if without and len(rows) > 1:
        whose = "any model" if len(without) == len(rows) else ", ".join(without)
        yield f"No quality score is given for {whose}: how good the answers are is not compared."


def _traffic(answer: dict[str, Any]) -> Iterator[str]:
    """What to know about the requests that all this was simulated on."""
    traffic, best = answer.get("traffic") or {}, answer["recommended"]
    if traffic.get("is_steady") is False:
        yield (
            f"The {traffic['num_requests']:,} requests arrive "
            f"within {seconds(traffic['lasts_s'])}, which is too short for a steady "
            "state: traffic that goes on may need more."
        )
    if best.get("preempted_share", 0.0) >= _OFTEN_PREEMPTED:
        yield (
            f"{100 * best['preempted_share']:.0f} % of the requests lose their KV blocks to others "
            "and are computed again, which the latencies contain: fewer sequences at once "
            "(space.max_sequences) or more memory would spare that work."
        )
    if best.get("too_long_share"):
        share = (
            "fewer than 0.1 %"
            if best["too_long_share"] < 0.001
            else f"{100 * best['too_long_share']:.1f} %"
        )
        yield (
            f"{share} of the requests are longer than {best['model']}'s context, "
            "and are counted as served."
        )


def _other_sizes(answer: dict[str, Any]) -> Iterator[str]:
    sizes, currency = answer.get("sizes") or {}, answer.get("currency", "USD")
    smaller, larger = sizes.get("smaller"), sizes.get("larger")
    if smaller:
        yield (
            f"The next smaller cluster, {_gpus(smaller['gpus'])}, "
            f"{missed(smaller['worst_target'], smaller['worst_ratio'])}."
        )
    if larger:
        cost = (
            f" for {money(larger['cost_per_hour'], currency)} per hour"
            if larger["cost_per_hour"]
            else ""
        )
        said = f"The next size up is {_gpus(larger['gpus'])}{cost}"
        if larger.get("deployment"):
            said += f"; the best there is {larger['deployment']}"
        if "worst_ratio" in larger and larger["worst_target"] != BACKLOG:
            said += (
                f", with the {target_text(larger['worst_target'])} "
                f"at {percent(larger['worst_ratio'])} of its limit"
            )
        yield f"{said}."


def _others(answer: dict[str, Any]) -> Iterator[str]:
    best, currency = answer["recommended"], answer.get("currency", "USD")
    others = [
        row for name, row in answer.get("best_of_each_model", {}).items() if name != best["model"]
    ]
    if others:
        other = min(
            others,
            key=lambda row: (row["is_moe"] == best["is_moe"], row["cost_per_hour"], row["gpus"]),
        )
        kind = _kind(other)
        cost = (
            f", {money(other['cost_per_hour'], currency)} per hour"
            if other["cost_per_hour"]
            else ""
        )
        yield f"The best {kind} would be {other['deployment']}{cost}."


def _left_out(answer: dict[str, Any]) -> Iterator[str]:
    """Machines and models that do not do; models of the other kind are in the headline where none
    of it does.
    """
    for cluster, why_not in (answer.get("clusters_ruled_out") or {}).items():
        yield f"{cluster} is ruled out: {why_not}."
    best, kinds = (
        answer["recommended"],
        {model["name"]: model["is_moe"] for model in answer.get("models", [])},
    )
    others = [
        row
        for row in answer.get("best_of_each_model", {}).values()
        if row["is_moe"] != best["is_moe"]
    ]
    for name, why in (answer.get("why_not_models") or {}).items():
        if others or kinds.get(name) == best["is_moe"]:
            if "target" in why:
                yield (
                    f"{name} does not meet {_every(answer)}: its nearest deployment {why['text']}."
                )
            else:
                yield f"{name} is ruled out: {why['text']}."


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count:,} GPUs"


def _impossible(answer: dict[str, Any]) -> str:
    why = answer.get("why_not") or {}
    text = why.get("text", "nothing can be run")
    return (
        "No deployment within the limits "
        f"meets {_every(answer)}: {'the nearest ' if 'target' in why else ''}{text}."
    )


def _why_not(answer: dict[str, Any]) -> Iterator[str]:
    why = answer.get("why_not") or {}
    if "target" in why:
        name, limit, row = (
            why["target"],
            answer.get("targets", {}).get(why["target"]),
            why.get("row"),
        )
        asked = "" if limit is None else f" where {value_text(name, limit)} is asked"
        cost = f", {price(answer, row)}" if row else ""
        if name == BACKLOG:
            yield f"The nearest is {why['deployment']}{cost}: more requests come than leave."
        else:
            yield (
                f"The nearest is {why['deployment']}{cost}: its {target_text(name)} "
                f"is {value_text(name, why['measured'])}{asked}."
            )
    for name, other in (answer.get("why_not_models") or {}).items():
        if "target" in other and other.get("deployment") != why.get("deployment"):
            yield f"The nearest of {name} {other['text']}."
        elif "target" not in other and "target" in why:
            yield f"{name} is ruled out: {other['text']}."
