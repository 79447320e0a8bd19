"""Sentences of a plan's answer, from its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from simulator.base.formats import chance, times
from simulator.results.answer import (
    Answer,
    Confidence,
    DeploymentRow,
    RecommendedRow,
    SpareGpus,
    SpareRow,
    TrafficFacts,
    WhyNot,
)
from simulator.results.answer.certainty import Flip, RatePoint
from simulator.results.answer.deployments import BACKLOG
from simulator.results.formats import TIMES, count, number, percent, seconds
from simulator.results.plan_text import (
    count_gpus,
    gpus,
    hourly,
    is_floor,
    money,
    per_hour,
    state_use,
    target_text,
    value_text,
)

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


_OFTEN_PREEMPTED = 0.02
"""Share of requests computed again from which on it is worth a word: less is lost in the noise."""
_FAR_FROM_ASKED = 0.03
"""Relative difference between the drawn rate and the one asked for from which on it is worth a
word: a size of 33 replicas changes by one."""


def tell_rate(traffic: TrafficFacts) -> str:
    """Rate of the judged requests, beside the one that was asked for where the two differ."""
    drawn, asked = f"{traffic.rate_per_s:.3g}", f"{traffic.asked_rate_per_s or 0:.3g}"
    beside = "" if traffic.asked_rate_per_s is None or drawn == asked else f", asked for {asked}"
    return f"{drawn} a second on average{beside}"


def tell_traffic(answer: Answer, best: DeploymentRow) -> Iterator[str]:
    """Describe the requests that everything was simulated on."""
    traffic = answer.traffic
    for note in () if traffic is None else traffic.notes:
        yield f"Of the log: {note}."
    if traffic is not None and traffic.is_steady is False:
        yield (
            f"The {traffic.num_requests:,} requests arrive "
            f"within {seconds(traffic.lasts_s or 0.0)}, which is too short for a steady "
            "state: traffic that goes on may need more."
        )
    if best.preempted_share >= _OFTEN_PREEMPTED:
        yield (
            f"{100 * best.preempted_share:.0f} % of the requests lose their KV blocks to others "
            "and are computed again, which the latencies contain: fewer sequences at once "
            "(space.max_sequences) or more memory would spare that work."
        )
    if best.too_long_share:
        share = (
            "fewer than 0.1 %"
            if best.too_long_share < 0.001
            else f"{100 * best.too_long_share:.1f} %"
        )
        yield (
            f"{share} of the requests are longer than {best.model}'s context, "
            "and are counted as served."
        )


def explain_traffic(traffic: TrafficFacts) -> Iterator[str]:
    """Describe the choice of the judged requests."""
    if traffic.asked_rate_per_s is not None:
        beside = traffic.rate_per_s / traffic.asked_rate_per_s - 1
        if abs(beside) >= _FAR_FROM_ASKED:
            yield (
                f"They happen to arrive at {traffic.rate_per_s:.3g} a second, where the workload "
                f"asks for {traffic.asked_rate_per_s:.3g}: everything is sized for the former. "
                "Bands and probabilities hold other samples with rates of their own; more "
                "requests (workload.num_requests) come nearer."
            )
    if traffic.lead_requests:
        yield (
            f"The first {traffic.lead_requests:,} requests are served and not judged: "
            "a cluster that starts empty looks faster than it is."
        )
    if traffic.stay_s and traffic.lasts_s is not None:
        steady = {True: ": long enough for a steady state", False: ": too short for a steady state"}
        yield (
            f"A request stays {seconds(traffic.stay_s)} where the targets are just kept; "
            f"those that are judged arrive over {number(traffic.lasts_s / traffic.stay_s)} times "
            f"as long{'' if traffic.is_steady is None else steady[traffic.is_steady]}."
        )
    if traffic.num_on_stretch:
        yield (
            f"Losses, headroom, bands and what-ifs are simulated on the {traffic.num_on_stretch:,} "
            "requests of the busiest stretch, enough for the highest percentile that is asked for."
        )
    if traffic.lengthened_from:
        yield (
            f"The workload asks for {traffic.lengthened_from:,} requests; more were generated, "
            "so that it lasts long enough."
        )


def warn_of_short_traffic(traffic: TrafficFacts | None) -> str:
    """The warning that the traffic is too short to judge by; empty where it is not."""
    if traffic is None or traffic.is_steady is not False:
        return ""
    lasts = f" of {seconds(traffic.lasts_s)}" if traffic.lasts_s is not None else ""
    stay = f", while one request stays {seconds(traffic.stay_s)}" if traffic.stay_s else ""
    return (
        "The traffic is too short to show a steady state: its requests arrive within a "
        f"stretch{lasts}{stay}. Under load that lasts, more GPUs may be needed than this plan "
        "says. Plan with a longer trace, or a longer peak."
    )


ALIKE = 0.005
"""Share by which costs may differ and be the same in words, which have two digits."""
_NEVER = 0.005
"""Probability below which there is none in words, which have whole hundredths."""
_MOST_HEADROOM = 7.9
"""Headroom from which on the search for it stopped."""
_STARTS = 0.95
"""Probability of starting below which that is said before anything else."""


def tell_start(answer: Answer) -> Iterator[str]:
    """A sentence where the memory of a GPU may not do."""
    sure = None if answer.confidence is None else answer.confidence.starts
    if sure is not None and sure < _STARTS:
        yield (
            f"It may not start: that its weights and one of the longest requests fit in a GPU's "
            f"memory has a probability of {chance(sure)}, going by logs of engines."
        )


def tell_headroom(answer: Answer, best: RecommendedRow) -> Iterator[str]:
    """Tell how much more traffic the recommended deployment would carry."""
    factor, traffic = best.headroom, answer.traffic
    if factor is None:
        return
    some = None if traffic is None else traffic.num_on_stretch
    where = f"On the busiest stretch ({some:,} requests) it" if some else "It"
    if best.headroom_is_least:
        more = "" if factor >= _MOST_HEADROOM else "; how much, these requests are too few to tell"
        yield f"{where} would carry {factor:g}{TIMES} this traffic or more{more}."
    elif factor < 1:
        yield f"{where} carries {factor:.2f}{TIMES} this traffic with all targets met."
    elif factor < 1.02:
        yield f"{where} has no headroom: a little more traffic, and a target is missed."
    else:
        band = best.band_of("headroom") or (factor, factor)
        low, high = (f"{end:.2f}{TIMES}" if end else f"under 0.13{TIMES}" for end in band)
        is_wide = low != high and math.isfinite(band[1])
        sure = f"; 80 % band: {low} to {high}" if is_wide else ""
        yield f"{where} would carry {factor:.2f}{TIMES} this traffic with all targets met{sure}."


def tell_confidence(answer: Answer) -> Iterator[str]:
    """The band of the cost, and how likely the first choice is the best."""
    if answer.confidence is not None:
        yield from _tell_cost(answer, answer.confidence)
        yield from _tell_second(answer.confidence)


def _tell_cost(answer: Answer, sure: Confidence) -> Iterator[str]:
    low, high = sure.needed_cost_low, sure.needed_cost_high
    if low is None:
        return
    if high is None:
        ends = f"{hourly(answer, low)} to no cluster within the limits is enough"
    elif abs(high - low) <= ALIKE * abs(low):
        ends = f"{hourly(answer, low)} at both ends"
    else:
        ends = f"{hourly(answer, low)} to {hourly(answer, high)}"
    meets = (
        ""
        if sure.meets_targets is None
        else f"; as it is, it meets every target with a probability of {chance(sure.meets_targets)}"
    )
    yield (
        "Allowing for the simulator's error and other samples of such traffic, the cluster needed "
        f"costs {ends} (80 % band){meets}."
    )


def _tell_second(sure: Confidence) -> Iterator[str]:
    less, same, more = sure.cheaper_than_second, sure.as_dear_as_second, sure.dearer_than_second
    if less is None or same is None or more is None:
        return
    second = f", {sure.second}," if sure.second else ""
    if same > 1 - _NEVER:
        yield (
            f"It costs as much as the second choice{second} whatever the simulator's error; "
            "the order is by what is safer and simpler."
        )
    else:
        yield (
            f"Against the second choice{second} it is cheaper with a probability of "
            f"{chance(less)}, as dear with {chance(same)}, and dearer with {chance(more)}."
        )


_KINDS = {"moe": "MoE", "dense": "dense"}


def compare_kinds(
    moe: DeploymentRow,
    dense: DeploymentRow,
    ratio: float | None,
    rates: Sequence[RatePoint],
    flips: Sequence[Flip],
) -> str:
    """The best of both kinds at the same targets, and where the cheaper one changes."""
    if ratio is None:
        return f"{moe.model} and {dense.model} have no price to compare."
    if dense.cost_per_hour == 0:
        return (
            f"At the same targets {moe.model} (MoE) takes {ratio:.2f}{TIMES} the GPUs "
            f"of {dense.model} (dense), which cost nothing."
        )
    if ratio == 1:
        said = f"At the same targets {moe.model} (MoE) and {dense.model} (dense) cost the same"
    else:
        said = (
            f"At the same targets {moe.model} (MoE) costs {ratio:.2f}{TIMES} "
            f"what {dense.model} (dense) does"
        )
    return f"{said}; {_locate_flips(rates, flips)}."


def state_only_kind(has_moe: bool, listed_moe: Iterable[bool]) -> str:
    """The kind that is the only choice.

    Args:
        has_moe: whether it is the mixture of experts.
        listed_moe: by model of the question, whether it is a mixture of experts.
    """
    present, absent = ("mixture-of-experts", "dense")[:: 1 if has_moe else -1]
    is_listed = any(is_moe != has_moe for is_moe in listed_moe)
    why = "meets the targets within the limits" if is_listed else "is among the models"
    return f"No {absent} model {why}, so a {present} one is the only choice."


def _locate_flips(rates: Sequence[RatePoint], flips: Sequence[Flip]) -> str:
    turned = [
        (
            f"at {flip.rate:.2g}{TIMES} the traffic ({flip.requests_per_s:.3g} requests/s) "
            f"from {_KINDS[flip.before]} to {_KINDS[flip.after]}"
        )
        for flip in flips
        if flip.what == "traffic" and flip.rate is not None
    ]
    turned += [f"with {flip.change} to {_KINDS[flip.after]}" for flip in flips if flip.rate is None]
    if turned:
        return "the cheaper kind changes " + " and ".join(turned)
    known = [point for point in rates if point.cost_ratio is not None]
    ratios = [point.cost_ratio for point in known if point.cost_ratio is not None]
    if not ratios:
        return "nothing that was tried changes that"
    least, most = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    between = least if least == most else f"between {least} and {most}"
    stays = (
        "both go on costing the same"
        if least == most == "1.00"
        else f"the MoE's cost stays {between} of the dense model's"
    )
    return f"from {known[0].rate:g}{TIMES} to {known[-1].rate:g}{TIMES} the traffic {stays}"


def explain_idle(answer: Answer, best: DeploymentRow) -> Iterator[str]:
    """Why the cluster is as large as it is, and why some of its GPUs stand idle."""
    if answer.spare.lost:
        yield _explain_spare(answer, best.gpus)
    yield from _explain_replicas(answer, best)
    idle = 0 if best.gpus_used is None else best.gpus - best.gpus_used
    if idle <= 0:
        return
    kept = min(answer.spare.gpus, idle)
    if idle > kept:
        why = "the cluster comes in no smaller size, and another replica there would add headroom"
        why = f"{kept} of them are what may be lost; {why}" if kept else why
    else:
        why = (
            "they are what may be lost; latencies assume that they serve nothing, and improve "
            "while replicas run there, too"
        )
    yield f"{idle} of its {best.gpus} GPUs {'stands' if idle == 1 else 'stand'} idle: {why}."


def _explain_replicas(answer: Answer, best: DeploymentRow) -> Iterator[str]:
    """Explain how many replicas are spare (N+k), and for what share of the time they are enough."""
    spare = answer.spare
    if spare.availability is None or spare.enough_low is None or spare.alone_low is None:
        return
    needed, asked = best.replicas + best.prefill_replicas, _state_nines(spare.availability)
    enough = _state_shares(spare.enough_low, spare.enough_high or spare.enough_low)
    alone = _state_shares(spare.alone_low, spare.alone_high or spare.alone_low)
    rates = f"at the failure rates of [failures] ({asked} % is asked at the higher rate)"
    if not spare.replicas:
        keeps = f"{count(needed, 'replica')} keep{'s' * (needed == 1)} every target"
        yield f"{keeps}, and no spare one is needed: all serve for {alone} of the time {rates}."
        return
    total = f"{needed + spare.replicas} replicas"
    least = f"of {total} at least {needed} serve{'s' * (needed == 1)}"
    if best.prefill_replicas:
        least = f"with {total} enough of each pool serve"
    gpus = spare.replica_gpus or 0
    cost = _state_cost(answer, best.cost_per_hour * gpus / best.gpus)
    yield (
        f"The cluster has room for {count(needed, 'replica')} and {spare.replicas} spare: {least} "
        f"for {enough} of the time {rates}; without spare ones it would be {alone}. {gpus} of its "
        f"{count_gpus(best.gpus)} {'is' if gpus == 1 else 'are'} spare{cost}"
        f"{_state_without(answer)}."
    )


def _state_shares(low: float, high: float) -> str:
    """A share of the time from the highest rate of failures to the lowest."""
    first, last = _state_nines(low), _state_nines(high)
    return f"{first} %" if first == last else f"{first} to {last} %"


def explain_losses(answer: Answer) -> Iterator[str]:
    """The most that may be lost with every target still met, for what share of the time no more is,
    what the next loss does, and what it would take to stand that.
    """
    if answer.spare.availability is None:
        yield from _tell_share_of_time(answer)
    rows = [row for row in answer.losses if row.nodes_lost or row.gpus_lost]
    kept = [row for row in rows if row.met]
    if kept:
        yield f"With {kept[-1].lost} lost it still meets every target."
    missed = next((row for row in rows if not row.met), None)
    if missed is None or any(row.nodes_lost for row in kept):
        return
    whole = answer.losses[0].attainment
    usual = "" if whole is None else f", {percent(whole)} with nothing lost"
    if missed.text:
        said = f"With {missed.lost} lost {missed.text}"
    else:
        served = (
            ""
            if missed.attainment is None
            else f": {percent(missed.attainment)} of requests are served within their limits{usual}"
        )
        said = f"With {missed.lost} lost a target is missed{served}"
    spare = _find_spare(answer, missed.lost)
    if spare is not None and spare.gpus:
        said += f"; to keep every target then takes {state_cluster(answer, spare)}"
        said += _state_whole_nodes(answer, spare)
    yield f"{said}."


def _tell_share_of_time(answer: Answer) -> Iterator[str]:
    """Tell for what share of the time no more is lost than the recommended cluster was asked to
    stand.
    """
    row = _find_spare(answer, answer.spare.lost or "nothing")
    if row is not None and (enough := share_of_time(row)):
        what = f"No more than {answer.spare.lost} is out" if answer.spare.lost else "All GPUs work"
        yield f"{what} for {enough} of the time, at the failure rates of [failures]."


def share_of_time(row: SpareRow) -> str:
    """Share of the time in which no more is lost, from the highest rate of failures to the lowest,
    such as ``99.2 to 99.87 %``; empty where it is not known.
    """
    if row.enough_low is None or row.enough_high is None:
        return ""
    return _state_shares(row.enough_low, row.enough_high)


def _state_nines(share: float) -> str:
    """A share near 1 as a percentage, with two digits of what is missing, and six nines at most.

    >>> _state_nines(0.99871), _state_nines(0.9999987), _state_nines(0.93)
    ('99.87', '99.9999', '93')
    """
    missing = max(100 * (1 - share), 1e-4)
    digits = max(0, 1 - math.floor(math.log10(missing)))
    told = min(share, 0.999999)
    return f"{100 * told:.{min(digits, 4)}f}".rstrip("0").rstrip(".")


def _find_spare(answer: Answer, lost: str) -> SpareRow | None:
    return next((row for row in answer.spare_nodes if row.lost == lost), None)


def _explain_spare(answer: Answer, size: int) -> str:
    """Explain which machines may be lost, and which cluster would do if none were."""
    spare = answer.spare
    alone = f" on {spare.nodes} nodes, a replica on each" if spare.is_spread else ""
    said = f"The cluster has {count_gpus(size)}{alone}, since {spare.lost} may be lost"
    said += _state_whole_nodes(answer, spare)
    return f"{said}{_state_without(answer)}."


def _state_without(answer: Answer) -> str:
    """Tell the size without anything spare, after a semicolon; empty where it is not known."""
    without = _find_spare(answer, "nothing")
    if without is None or not without.gpus:
        return ""
    cost = _state_cost(answer, without.cost_per_hour)
    return f"; without the spare {count_gpus(without.gpus)} would do{cost}"


def state_cluster(answer: Answer, row: SpareRow) -> str:
    """A cluster with its nodes and cost."""
    cost = _state_cost(answer, row.cost_per_hour)
    return f"{count_gpus(row.gpus or 0)} on {count(row.nodes or 0, 'node')}{cost}"


def _state_whole_nodes(answer: Answer, row: SpareRow | SpareGpus) -> str:
    """Tell the size in whole nodes, after a semicolon; empty where the cluster has them already."""
    if not row.gpus_in_whole_nodes:
        return ""
    cost = _state_cost(answer, row.cost_per_hour_in_whole_nodes)
    whole = count_gpus(row.gpus_in_whole_nodes)
    return f"; where only whole nodes are rented it takes {whole}{cost}"


def _state_cost(answer: Answer, cost: float | None) -> str:
    """A cost after a comma; empty where there is none."""
    return f", {per_hour(cost, answer)}" if cost else ""
