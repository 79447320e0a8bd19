"""Findings of a plan's answer, from its numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from simulator.base.findings import Finding
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.results.answer import (
    Answer,
    Confidence,
    DeploymentRow,
    RecommendedRow,
    SpareRow,
    TrafficFacts,
)
from simulator.results.answer.certainty import Comparison, Flip, RatePoint
from simulator.results.answer.deployments import BACKLOG
from simulator.results.plan_text import hourly, is_floor, target_text, value_text

_SURE = 0.8
"""Probability below which a recommendation is said to be unlikely to hold."""
_MOST_MODELS = 3
"""Models for which the headline gives reasons; more make it unreadable."""


def headline(answer: Answer) -> Finding:
    """Find the answer in one sentence."""
    best, targets = answer.recommended, len(answer.targets)
    if best is None:
        return Finding("plan.impossible", targets=targets, why=answer.why_not)
    compared = _compare_best(answer, best)
    return Finding(
        "plan.met", row=best, targets=targets, currency=answer.currency, compared=compared
    )


def name_kind(row: DeploymentRow) -> str:
    """The kind of a deployment's model."""
    if row.is_pruned:
        return "pruned model"
    return "mixture of experts" if row.is_moe else "dense model"


def state_miss(target: str, ratio: float) -> Finding:
    """Find the target that is missed, and by how much.

    >>> str(state_miss("ttft_s.p90", 1.5)).replace("\N{MULTIPLICATION SIGN}", "x")
    'misses the time to first token (p90): 1.5x its limit'
    >>> str(state_miss("backlog", 3.0))
    'falls behind what comes'
    """
    return Finding("plan.miss", target=target, ratio=ratio, words=target_text(target))


def state_shortfall(target: str, ratio: float, size: int, most_of: str) -> Finding:
    """Find the target that the largest cluster misses, by how much, and what bounds its size.

    Args:
        size: GPUs of the cluster.
        most_of: what the cluster is all of; empty where it is not the largest.
    """
    return Finding("plan.shortfall", miss=state_miss(target, ratio), gpus=size, most_of=most_of)


def _state_use(target: str, ratio: float) -> Finding:
    """Find the share of a target's limit that is used."""
    return Finding("plan.use", target=target, ratio=ratio, words=target_text(target))


def _compare_best(answer: Answer, best: DeploymentRow) -> Finding | None:
    """Hold the best of the other kind against the recommended one; of another model where there is
    one kind.
    """
    others = answer.other_models()
    if other := next((row for row in others if row.is_moe != best.is_moe), None):
        return _compare_costs(best, other, f"best {name_kind(other)}")
    listed = [model.name for model in answer.models if model.is_moe != best.is_moe]
    if listed:
        return Finding("plan.no_rival", kind=_name_other_kind(best))
    return _compare_costs(best, others[0], "next model") if others else None


def _name_other_kind(best: DeploymentRow) -> str:
    return "dense model" if best.is_moe else "mixture of experts"


def _find_without_rival(answer: Answer, best: DeploymentRow) -> Iterator[Finding]:
    """Find what stops the models of the other kind, where none of them meets the targets."""
    listed = [model.name for model in answer.models if model.is_moe != best.is_moe]
    if listed and all(row.is_moe == best.is_moe for row in answer.other_models()):
        stopped = [(name, answer.why_not_models.get(name)) for name in listed]
        yield Finding(
            "plan.without_rival",
            kind=_name_other_kind(best),
            stopped=stopped[:_MOST_MODELS],
            more=len(stopped[_MOST_MODELS:]),
        )


def _compare_costs(best: DeploymentRow, other: DeploymentRow, what: str) -> Finding:
    ratio = other.cost_per_hour / best.cost_per_hour if best.cost_per_hour else None
    return Finding("plan.rival", what=what, row=other, ratio=ratio)


_BINDS = 0.9
"""Share of its limit from which on a target is what decides; below it is merely the closest."""


def reasons(answer: Answer) -> Iterator[Finding]:
    """Find the reasons for a recommendation, or for there being none."""
    best = answer.recommended
    return _explain_failure(answer) if best is None else _explain_choice(answer, best)


def _explain_choice(answer: Answer, best: RecommendedRow) -> Iterator[Finding]:
    yield from find_start(answer)
    sure = None if answer.confidence is None else answer.confidence.meets_targets
    if sure is not None and sure < _SURE:
        yield Finding("plan.unlikely", sure=sure, targets=len(answer.targets))
    yield Finding("plan.deploy", deployment=best.deployment, token_budget=best.token_budget)
    if best.cost_per_hour:
        yield Finding("plan.cost", row=best, currency=answer.currency)
    yield from _find_without_rival(answer, best)
    yield from _find_binding(answer, best)
    yield from _find_unscored(answer)
    yield from _explain_size(answer, best)
    yield from _find_short_traffic(answer, best)
    yield from _find_headroom(answer, best)
    yield from _find_other_sizes(answer)
    if answer.moe_vs_dense is not None and answer.moe_vs_dense.text:
        yield from _find_formats(answer.moe_vs_dense)
        yield Finding("plan.moe_vs_dense", text=answer.moe_vs_dense.text)
    else:
        yield from find_other_model(answer, best)
    yield from _find_left_out(answer, best)
    yield from _explain_losses(answer)
    yield from find_confidence(answer)
    for one in answer.undetermined:
        yield Finding("plan.undetermined", one=one)


def _find_binding(answer: Answer, best: RecommendedRow) -> Iterator[Finding]:
    """Find every target with its limit, the binding SLO first."""
    kept = [
        (
            _share_of_limit(name, value, limit),
            Finding(
                "plan.target",
                words=target_text(name),
                value=value_text(name, value),
                is_floor=is_floor(name),
                limit=value_text(name, limit),
            ),
        )
        for name, limit in answer.targets.items()
        if (value := best.measured_value(name)) is not None
    ]
    if best.worst_target == BACKLOG:
        ratio = best.worst_ratio
        piled = Finding("plan.backlog", target=BACKLOG, ratio=ratio, words=target_text(BACKLOG))
        kept.append((ratio, piled))
    if kept:
        ordered = [found for _, found in sorted(kept, key=itemgetter(0), reverse=True)]
        yield Finding("plan.binds", binds=best.worst_ratio >= _BINDS, kept=ordered)


def _share_of_limit(name: str, value: float, limit: float) -> float:
    """Measured over limit, limit over measured of a rate."""
    if name == "attainment":
        return (1 - value) / max(1 - limit, 1e-9)
    return limit / value if is_floor(name) else value / limit


def _find_formats(compared: Comparison) -> Iterator[Finding]:
    """Find number formats of other widths in the models that are compared."""
    rows = [row for row in (compared.moe, compared.dense) if row is not None]
    texts = [row.deployment.removeprefix(row.model).strip() for row in rows]
    formats = [text.partition(" ")[0].rstrip(",") for text in texts]
    if len({round(2 * BYTES_PER_ELEMENT.get(one, 0.0)) for one in formats}) > 1:
        names = [f"{row.model} in {one}" for row, one in zip(rows, formats, strict=True)]
        yield Finding("plan.formats", names=names)


def _find_unscored(answer: Answer) -> Iterator[Finding]:
    """Find models that nobody scored, which are compared as if all answers were equally good."""
    rows = answer.best_of_each_model
    without = [name for name, row in rows.items() if row.quality is None]
    if without and len(rows) > 1:
        yield Finding("plan.unscored", names=without, is_all=len(without) == len(rows))


def _find_other_sizes(answer: Answer) -> Iterator[Finding]:
    if answer.sizes is None:
        return
    smaller, larger, also = answer.sizes.smaller, answer.sizes.larger, answer.sizes.also_meets
    if smaller is not None:
        miss = state_miss(smaller.worst_target, smaller.worst_ratio)
        has_spare = bool(answer.spare.replicas)
        yield Finding("plan.smaller", gpus=smaller.gpus, miss=miss, has_spare=has_spare)
    if also is not None:
        use = _state_use(also.worst_target, also.worst_ratio)
        yield Finding("plan.also_meets", gpus=also.gpus, use=use, error=also.sampling_error)
    if larger is not None:
        target, ratio = larger.worst_target, larger.worst_ratio
        told = ratio is not None and target not in (None, BACKLOG)
        used = _state_use(target or "", ratio or 0.0) if told else None
        yield Finding("plan.larger", row=larger, use=used, currency=answer.currency)


def find_other_model(answer: Answer, best: RecommendedRow) -> Iterator[Finding]:
    """Find the best deployment of another model, of the other kind where there is one."""
    others = sorted(answer.other_models(), key=lambda row: row.is_moe == best.is_moe)
    for row in others[:1]:
        yield Finding("plan.other", kind=name_kind(row), row=row, currency=answer.currency)


def _find_left_out(answer: Answer, best: RecommendedRow) -> Iterator[Finding]:
    """Find machines and models that do not do; models of the other kind are in the headline where
    none of it does.
    """
    for cluster, why_not in answer.clusters_ruled_out.items():
        yield Finding("plan.ruled_out", name=cluster, why=why_not)
    kinds = {model.name: model.is_moe for model in answer.models}
    has_other_kind = any(row.is_moe != best.is_moe for row in answer.best_of_each_model.values())
    for name, why in answer.why_not_models.items():
        if not has_other_kind and kinds.get(name) != best.is_moe:
            continue
        if why.target:
            yield Finding("plan.misses", name=name, targets=len(answer.targets), why=why.text)
        else:
            yield Finding("plan.ruled_out", name=name, why=why.text)


def _explain_failure(answer: Answer) -> Iterator[Finding]:
    yield from _find_unsteady(answer)
    why = answer.why_not
    target = None if why is None else why.target
    if why is not None and target is not None:
        limit = answer.targets.get(target)
        yield Finding(
            "plan.nearest",
            why=why,
            row=why.row,
            currency=answer.currency,
            words=target_text(target),
            value=value_text(target, why.measured or 0.0),
            limit=None if limit is None else value_text(target, limit),
        )
    for name, other in answer.why_not_models.items():
        if other.target:
            if why is None or other.deployment != why.deployment:
                yield Finding("plan.nearest_of", name=name, why=other.text)
        elif target is not None:
            yield Finding("plan.ruled_out", name=name, why=other.text)


_OFTEN_PREEMPTED = 0.02
"""Share of requests computed again from which on it is worth a word: less is lost in the noise."""
_FAR_FROM_ASKED = 0.03
"""Relative difference between the drawn rate and the one asked for from which on it is worth a
word: a size of 33 replicas changes by one."""


def find_rate(traffic: TrafficFacts) -> Finding:
    """Find the rate of the judged requests, beside the one that was asked for."""
    return Finding("traffic.rate", drawn=traffic.rate_per_s, asked=traffic.asked_rate_per_s)


def _find_short_traffic(answer: Answer, best: DeploymentRow) -> Iterator[Finding]:
    """Find what the requests that everything was simulated on hide."""
    traffic = answer.traffic
    for note in () if traffic is None else traffic.notes:
        yield Finding("traffic.note", note=note)
    yield from _find_unsteady(answer)
    if best.preempted_share >= _OFTEN_PREEMPTED:
        yield Finding("traffic.preempted", share=best.preempted_share)
    if best.too_long_share:
        yield Finding("traffic.too_long", share=best.too_long_share, model=best.model)


def _find_unsteady(answer: Answer) -> Iterator[Finding]:
    """Find whether the traffic is too short to judge by."""
    if answer.traffic is not None and answer.traffic.is_steady is False:
        yield Finding("traffic.short", traffic=answer.traffic)


def explain_traffic(traffic: TrafficFacts) -> Iterator[Finding]:
    """Find the choice of the judged requests."""
    drawn, asked = traffic.rate_per_s, traffic.asked_rate_per_s
    if asked is not None and abs(drawn / asked - 1) >= _FAR_FROM_ASKED:
        yield Finding("traffic.far_from_asked", drawn=drawn, asked=asked)
    if traffic.lead_requests:
        yield Finding("traffic.lead", requests=traffic.lead_requests)
    if traffic.stay_s and traffic.lasts_s is not None:
        yield Finding("traffic.stay", traffic=traffic)
    if traffic.num_on_stretch:
        yield Finding("traffic.stretch", requests=traffic.num_on_stretch)
    if traffic.lengthened_from:
        yield Finding("traffic.lengthened", requests=traffic.lengthened_from)


_NEVER = 0.005
"""Probability below which there is none in words, which have whole hundredths."""
_STARTS = 0.95
"""Probability of starting below which that is said before anything else."""


def find_start(answer: Answer) -> Iterator[Finding]:
    """Find whether the memory of a GPU may not do."""
    sure = None if answer.confidence is None else answer.confidence.starts
    if sure is not None and sure < _STARTS:
        yield Finding("plan.may_not_start", chance=sure)


def _find_headroom(answer: Answer, best: RecommendedRow) -> Iterator[Finding]:
    """Find how much more traffic the recommended deployment would carry."""
    factor, traffic = best.headroom, answer.traffic
    if factor is not None:
        yield Finding(
            "plan.headroom",
            factor=factor,
            is_least=best.headroom_is_least,
            band=best.band_of("headroom") or (factor, factor),
            requests=None if traffic is None else traffic.num_on_stretch,
        )


def find_confidence(answer: Answer) -> Iterator[Finding]:
    """Find the band of the cost, and how likely the first choice is the best."""
    sure = answer.confidence
    if sure is None:
        return
    if sure.needed_cost_low is not None:
        low, high = sure.needed_cost_low, sure.needed_cost_high
        yield Finding(
            "plan.needed_cost",
            low=hourly(answer, low),
            high=None if high is None else hourly(answer, high),
            is_narrow=high is not None and abs(high - low) <= ALIKE * abs(low),
            meets=sure.meets_targets,
        )
    yield from _find_second(sure)


def _find_second(sure: Confidence) -> Iterator[Finding]:
    odds = sure.cheaper_than_second, sure.as_dear_as_second, sure.dearer_than_second
    if None not in odds:
        is_same = (sure.as_dear_as_second or 0.0) > 1 - _NEVER
        yield Finding("plan.second", second=sure.second, odds=odds, is_same=is_same)


def compare_kinds(
    moe: DeploymentRow,
    dense: DeploymentRow,
    ratio: float | None,
    rates: Sequence[RatePoint],
    flips: Sequence[Flip],
) -> Finding:
    """Hold the best of both kinds against each other at the same targets, and find where the
    cheaper one changes.
    """
    known = [point for point in rates if point.cost_ratio is not None]
    return Finding(
        "plan.kinds",
        moe=moe.model,
        dense=dense.model,
        is_free=not dense.cost_per_hour,
        ratio=ratio,
        at_rates=[one for one in flips if one.what == "traffic" and one.rate is not None],
        with_changes=[one for one in flips if one.rate is None],
        rates=[point.rate for point in known],
        ratios=[point.cost_ratio for point in known],
    )


def state_only_kind(has_moe: bool, listed_moe: Iterable[bool]) -> Finding:
    """Find the kind that is the only choice.

    Args:
        has_moe: whether it is the mixture of experts.
        listed_moe: by model of the question, whether it is a mixture of experts.
    """
    is_listed = any(is_moe != has_moe for is_moe in listed_moe)
    return Finding("plan.only_kind", has_moe=has_moe, is_listed=is_listed)


def _explain_size(answer: Answer, best: DeploymentRow) -> Iterator[Finding]:
    """Explain why the cluster is as large as it is, and why some of its GPUs stand idle."""
    spare, currency = answer.spare, answer.currency
    without = _find_spare(answer, "nothing")
    if spare.lost:
        yield Finding("plan.spare", gpus=best.gpus, spare=spare, without=without, currency=currency)
    if None not in (spare.availability, spare.enough_low, spare.alone_low):
        kind = "plan.spare_replicas" if spare.replicas else "plan.no_spare_replicas"
        yield Finding(kind, row=best, spare=spare, without=without, currency=currency)
    idle = 0 if best.gpus_used is None else best.gpus - best.gpus_used
    if idle > 0:
        yield Finding("plan.idle", idle=idle, gpus=best.gpus, kept=min(spare.gpus, idle))


def _explain_losses(answer: Answer) -> Iterator[Finding]:
    """Explain the most that may be lost with every target still met, for what share of the time no
    more is, what the next loss does, and what it would take to stand that.
    """
    if answer.spare.availability is None:
        lost = answer.spare.lost
        row = _find_spare(answer, lost or "nothing")
        if row is not None and (enough := share_of_time(row)):
            yield Finding("plan.share_of_time", lost=lost, enough=enough)
    rows = [row for row in answer.losses if row.nodes_lost or row.gpus_lost]
    kept = [row for row in rows if row.met]
    if kept:
        yield Finding("plan.stands", lost=kept[-1].lost)
    missed = next((row for row in rows if not row.met), None)
    if missed is None or any(row.nodes_lost for row in kept):
        return
    yield Finding(
        "plan.loss",
        loss=missed,
        whole=answer.losses[0].attainment,
        spare=_find_spare(answer, missed.lost),
        currency=answer.currency,
    )


def share_of_time(row: SpareRow) -> str:
    """Share of the time in which no more is lost, from the highest rate of failures to the lowest,
    such as ``99.2 to 99.87 %``; empty where it is not known.
    """
    if row.enough_low is None or row.enough_high is None:
        return ""
    return str(Finding("plan.share", low=row.enough_low, high=row.enough_high))


def _find_spare(answer: Answer, lost: str) -> SpareRow | None:
    return next((row for row in answer.spare_nodes if row.lost == lost), None)


ALIKE = 0.005
"""Share by which costs may differ and be the same in words, which have two digits."""
