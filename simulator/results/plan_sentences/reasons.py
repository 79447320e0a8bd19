"""Sentences on a buyer's questions beside the headline."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from simulator.results.answer import Answer, RecommendedRow
from simulator.results.answer.deployments import BACKLOG
from simulator.results.formats import percent
from simulator.results.plan_sentences.confidence import tell_confidence, tell_headroom, tell_start
from simulator.results.plan_sentences.failures import explain_idle, explain_losses
from simulator.results.plan_sentences.headline import (
    name_kind,
    name_targets,
    state_miss,
    state_price,
)
from simulator.results.plan_sentences.traffic import tell_traffic
from simulator.results.plan_text import (
    count_gpus,
    is_floor,
    per_hour,
    state_use,
    target_text,
    value_text,
)

_BINDS = 0.9
"""Share of its limit from which on a target is what decides; below it is merely the closest."""


def reasons(answer: Answer) -> tuple[str, ...]:
    """The reasons for a recommendation, or for there being none."""
    best = answer.recommended
    return tuple(_explain_failure(answer) if best is None else _explain_choice(answer, best))


def _explain_choice(answer: Answer, best: RecommendedRow) -> Iterator[str]:
    yield from tell_start(answer)
    step = f", {best.token_budget:,} tokens a step"
    yield f"Deploy {best.deployment.removesuffix(step)}{step}."
    yield from _tell_targets(answer, best)
    yield from _tell_unscored(answer)
    yield from explain_idle(answer, best)
    yield from tell_traffic(answer, best)
    yield from tell_headroom(answer, best)
    yield from _tell_other_sizes(answer)
    if answer.moe_vs_dense is not None and answer.moe_vs_dense.text:
        yield answer.moe_vs_dense.text
    else:
        yield from _tell_other_model(answer, best)
    yield from _tell_left_out(answer, best)
    yield from explain_losses(answer)
    yield from tell_confidence(answer)
    for one in answer.undetermined:
        yield f"Not determined: {one.what}; {one.text}. What would tell: {one.would}."


def _tell_targets(answer: Answer, best: RecommendedRow) -> Iterator[str]:
    """Every target with its limit, the tightest first."""
    kept = [
        (
            _share_of_limit(name, value, limit),
            f"{target_text(name)}: {value_text(name, value)}, "
            f"{'asked' if is_floor(name) else 'limit'} {value_text(name, limit)}",
        )
        for name, limit in answer.targets.items()
        if (value := best.measured_value(name)) is not None
    ]
    if best.worst_target == BACKLOG:
        used = state_use(BACKLOG, best.worst_ratio)
        kept.append((best.worst_ratio, f"{target_text(BACKLOG)} that pile up: it {used}"))
    if kept:
        first = "What binds is" if best.worst_ratio >= _BINDS else "Closest to its limit is"
        ordered = sorted(kept, key=itemgetter(0), reverse=True)
        yield f"{first} the {'; '.join(text for _, text in ordered)}."


def _share_of_limit(name: str, value: float, limit: float) -> float:
    """Measured over limit, limit over measured of a rate."""
    if name == "attainment":
        return (1 - value) / max(1 - limit, 1e-9)
    return limit / value if is_floor(name) else value / limit


def _tell_unscored(answer: Answer) -> Iterator[str]:
    """Models that nobody scored, which are compared as if all answers were equally good."""
    rows = answer.best_of_each_model
    without = [name for name, row in rows.items() if row.quality is None]
    if without and len(rows) > 1:
        whose = "any model" if len(without) == len(rows) else ", ".join(without)
        yield f"No quality score is given for {whose}: how good the answers are is not compared."


def _tell_other_sizes(answer: Answer) -> Iterator[str]:
    if answer.sizes is None:
        return
    smaller, larger = answer.sizes.smaller, answer.sizes.larger
    if smaller is not None:
        missed = state_miss(smaller.worst_target, smaller.worst_ratio)
        out = " with its spare replicas out of work" if answer.spare.replicas else ""
        yield f"The next smaller cluster, {count_gpus(smaller.gpus)}, {missed}{out}."
    also = answer.sizes.also_meets
    if also is not None:
        yield (
            f"{count_gpus(also.gpus)} would do as well, by chance or not: the "
            f"{target_text(also.worst_target)} {state_use(also.worst_target, also.worst_ratio)}, "
            f"with a sampling error of {percent(also.sampling_error)} at this many requests."
        )
    if larger is not None:
        cost = f" for {per_hour(larger.cost_per_hour, answer)}" if larger.cost_per_hour else ""
        said = f"The next size up is {count_gpus(larger.gpus)}{cost}"
        if larger.deployment:
            said += f"; the best there is {larger.deployment}"
        if larger.worst_ratio is not None and larger.worst_target not in (None, BACKLOG):
            said += (
                f"; the {target_text(larger.worst_target or '')} "
                f"{state_use(larger.worst_target or '', larger.worst_ratio)}"
            )
        yield f"{said}."


def _tell_other_model(answer: Answer, best: RecommendedRow) -> Iterator[str]:
    """The best deployment of another model, of the other kind where there is one."""
    others = sorted(answer.other_models(), key=lambda row: row.is_moe == best.is_moe)
    if others:
        other = others[0]
        cost = f", {per_hour(other.cost_per_hour, answer)}" if other.cost_per_hour else ""
        yield f"The best {name_kind(other)} would be {other.deployment}{cost}."


def _tell_left_out(answer: Answer, best: RecommendedRow) -> Iterator[str]:
    """Machines and models that do not do; models of the other kind are in the headline where none
    of it does.
    """
    for cluster, why_not in answer.clusters_ruled_out.items():
        yield f"{cluster} is ruled out: {why_not}."
    kinds = {model.name: model.is_moe for model in answer.models}
    has_other_kind = any(row.is_moe != best.is_moe for row in answer.best_of_each_model.values())
    for name, why in answer.why_not_models.items():
        if has_other_kind or kinds.get(name) == best.is_moe:
            if why.target:
                met = name_targets(answer)
                yield f"{name} does not meet {met}: its nearest deployment {why.text}."
            else:
                yield f"{name} is ruled out: {why.text}."


def _explain_failure(answer: Answer) -> Iterator[str]:
    why = answer.why_not
    is_near = why is not None and why.target is not None
    if why is not None and why.target is not None:
        cost = f", {state_price(answer, why.row)}" if why.row else ""
        if why.target == BACKLOG:
            yield f"The nearest is {why.deployment}{cost}: more requests come than leave."
        else:
            limit = answer.targets.get(why.target)
            asked = "" if limit is None else f" where {value_text(why.target, limit)} is asked"
            yield (
                f"The nearest is {why.deployment}{cost}: its {target_text(why.target)} "
                f"is {value_text(why.target, why.measured or 0.0)}{asked}."
            )
    for name, other in answer.why_not_models.items():
        if other.target:
            if why is None or other.deployment != why.deployment:
                yield f"The nearest of {name} {other.text}."
        elif is_near:
            yield f"{name} is ruled out: {other.text}."
