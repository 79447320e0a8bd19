"""Relations that every answer of a plan keeps, checked before it is printed.

Those of :data:`CERTAIN` hold by construction: an answer that breaks one is a defect of ours. Those
of :data:`ON_AVERAGE` hold in the mean of the requests that could come: few requests may break one,
and the answer then says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from simulator.results.answer import Answer, DeploymentRow
from simulator.results.answer.deployments import BACKLOG
from simulator.results.answer.parts import Banded, Part, Undetermined

_ROUNDING = 1e-9
_SURE = 0.99
"""Probability of meeting every target from which on nothing may say that one is missed."""
_TAIL = 0.1
"""Share of samples below an 80 % band."""
_LEAST_BEYOND = 20
"""Requests beyond a percentile from which on nothing is said: their number then varies by less than
a fourth."""
_FEWER = "more requests: a longer peak_s, or a larger workload.num_requests"


class ContradictionError(RuntimeError):
    """An answer that contradicts itself: a defect of the simulator, not of the question."""


def check_answer(answer: Answer) -> None:
    """Refuse an answer that breaks a relation that holds by construction.

    Raises:
        ContradictionError: naming the relation, and what breaks it.
    """
    for relation in CERTAIN:
        for broken in relation(answer):
            name = relation.__name__.replace("_", " ")
            raise ContradictionError(f"the answer contradicts itself ({name}): {broken}")


def find_undetermined(answer: Answer) -> tuple[Undetermined, ...]:
    """Figures that these requests do not determine: relations that hold in the mean, not here."""
    return tuple(note for relation in ON_AVERAGE for note in relation(answer))


def the_recommended_row_is_the_first_of_the_table(answer: Answer) -> Iterator[str]:
    """The headline's deployment is the table's first and cheapest, with the same figures."""
    best = answer.recommended
    if best is None:
        if answer.candidates:
            yield "nothing is recommended, and the table has deployments that meet the targets"
        return
    if not answer.candidates:
        yield "the table is empty"
        return
    first = answer.candidates[0].model_dump()
    for name, value in best.model_dump().items():
        if name in first and first[name] != value:
            yield f"{name} is {value} in the headline and {first[name]} in the table"
    cheapest = min(row.cost_per_hour for row in answer.candidates)
    if best.cost_per_hour > cheapest * (1 + _ROUNDING):
        yield f"it costs {best.cost_per_hour:g} an hour, and another row {cheapest:g}"
    if answer.headline and best.model not in answer.headline:
        yield f"the headline does not name {best.model}"


def rows_that_meet_the_targets_do(answer: Answer) -> Iterator[str]:
    """Every measured figure of the table is within its limit."""
    for row in _list_rows(answer):
        if row.worst_ratio > 1:
            yield f"{row.deployment} is listed, at {row.worst_ratio:g} of {row.worst_target}"
        for target, limit in answer.targets.items():
            value = row.measured_value(target)
            is_floor = target in ("attainment", "output_tokens_per_s")
            if value is not None and (value < limit if is_floor else value > limit):
                yield f"{row.deployment} is listed, with {target} = {value:g} against {limit:g}"


def models_are_named_once(answer: Answer) -> Iterator[str]:
    """A model is either met with, by a row of the table, or has an obstacle."""
    rows = {row.deployment for row in answer.candidates}
    for name, row in answer.best_of_each_model.items():
        if row.deployment not in rows:
            yield f"the best of {name} is not in the table"
        if name in answer.why_not_models:
            yield f"{name} meets the targets and is said to miss them"


def bands_hold_their_figures(answer: Answer) -> Iterator[str]:
    """A band is of the figure beside it, of the same deployment at the same size."""
    for part in _list_parts(answer):
        for key, end in part.__pydantic_extra__.items():
            name, _, side = key.rpartition("_")
            value = getattr(part, name, None)
            if end is None or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            beyond = (end - value) * (1 if side == "low" else -1)
            if beyond > _ROUNDING * abs(value):
                yield f"{key} = {end:g} beside {name} = {value:g}"
        if isinstance(part, DeploymentRow) and part.band_of("cost_per_hour") is not None:
            yield f"the cost of {part.deployment}, whose size is fixed, has a band"


def probabilities_add_up(answer: Answer) -> Iterator[str]:
    """Cheaper, as dear and dearer exclude each other; of all deployments one at most is best."""
    sure = answer.confidence
    if sure is not None:
        odds = (sure.cheaper_than_second, sure.as_dear_as_second, sure.dearer_than_second)
        if None not in odds and abs(sum(one or 0.0 for one in odds) - 1) > _ROUNDING:
            yield f"cheaper, as dear and dearer than the second are {odds}"
        less, no_more = sure.moe_beats_dense, sure.moe_costs_no_more_than_dense
        if less is not None and no_more is not None and less > no_more + _ROUNDING:
            yield f"MoE is cheaper with {less:g}, and no dearer with {no_more:g}"
        best = sum(row.is_best_probability or 0.0 for row in answer.candidates if row.kind == "MoE")
        if no_more is not None and best > no_more + _ROUNDING:
            yield f"MoE is cheapest with {best:g}, and no dearer than dense with {no_more:g}"
    total = sum(row.is_best_probability or 0.0 for row in answer.candidates)
    if total > 1 + 1e-6:
        yield f"probabilities of being the cheapest add up to {total:g}"


def what_surely_meets_does_not_miss(answer: Answer) -> Iterator[str]:
    """A deployment that meets every target almost surely misses none as it is."""
    best, sure = answer.recommended, answer.confidence
    if best is None or sure is None or (sure.meets_targets or 0.0) <= _SURE:
        return
    if answer.losses and not answer.losses[0].met:
        yield f"it meets with {sure.meets_targets:g}, and misses with nothing lost"
    if best.headroom is not None and best.headroom < 1:
        yield f"it meets with {sure.meets_targets:g}, and carries {best.headroom:g} of the traffic"


def bands_of_headroom_begin_where_few_samples_miss(answer: Answer) -> Iterator[str]:
    """The low end of its 80 % band carries all traffic just where nine of ten samples meet the
    targets.
    """
    sure = answer.confidence
    if sure is None or sure.headroom_low is None or not sure.meets_targets or not sure.starts:
        return
    meets = sure.meets_targets / sure.starts
    is_close = abs(meets - (1 - _TAIL)) < _ROUNDING
    if not is_close and (sure.headroom_low >= 1) != (meets > 1 - _TAIL):
        yield f"it meets with {meets:g}, and carries {sure.headroom_low:g} at the low end"


def what_carries_twice_the_traffic_needs_no_more_for_it(answer: Answer) -> Iterator[str]:
    """Twice the traffic costs no more than a cluster that carries it."""
    best = answer.recommended
    row = next((one for one in answer.sensitivity if one.name == "traffic"), None)
    if best is None or row is None or best.headroom is None or best.headroom < 2:
        return
    if row.cost_per_hour is None or row.cost_per_hour > best.cost_per_hour * (1 + _ROUNDING):
        now = f"{best.gpus:,} GPUs carry {best.headroom:.2f} times the traffic"
        yield f"{now} for {best.cost_per_hour:g}, and twice takes {row.cost_per_hour}"


def smaller_sizes_miss(answer: Answer) -> Iterator[Undetermined]:
    """Larger clusters of one deployment meet what smaller ones do."""
    best, also = answer.recommended, None if answer.sizes is None else answer.sizes.also_meets
    if best is not None and also is not None:
        yield Undetermined(
            what="the smallest size",
            figures={
                "gpus": best.gpus,
                "gpus_that_meet_too": also.gpus,
                "worst_ratio": also.worst_ratio,
                "sampling_error": also.sampling_error,
            },
            text=f"{also.gpus:,} GPUs meet the targets, and a size between that and {best.gpus:,} "
            "misses one",
            would=_FEWER,
        )


def more_lost_costs_no_less(answer: Answer) -> Iterator[Undetermined]:
    """A cluster that stands two lost nodes is no cheaper than one that stands one."""
    costs = [(row.lost, row.cost_per_hour) for row in answer.spare_nodes if row.cost_per_hour]
    for (lost, cost), (more, less) in pairwise(costs):
        if cost is not None and less is not None and less < cost * (1 - _ROUNDING):
            yield Undetermined(
                what=f"the cluster that stands {more} lost",
                figures={"cost_per_hour": less, "cost_per_hour_of_less": cost},
                text=f"it came out cheaper than the one that stands {lost} lost",
                would=_FEWER,
            )


def more_load_costs_no_less(answer: Answer) -> Iterator[Undetermined]:
    """More traffic and longer prompts are no cheaper to serve."""
    for row in answer.sensitivity:
        if row.name in ("traffic", "prompts") and (row.cost_ratio or 1.0) < 1 - _ROUNDING:
            yield Undetermined(
                what=f"the cost with {row.change}",
                figures={"cost_ratio": row.cost_ratio or 1.0},
                text="it came out below that without",
                would=_FEWER,
            )


def what_meets_on_all_requests_meets_on_a_stretch(answer: Answer) -> Iterator[Undetermined]:
    """The busiest stretch is served within the targets, as all requests are."""
    best = answer.recommended
    if best is None or best.headroom is None or best.headroom >= 1:
        return
    target = "" if best.worst_target == BACKLOG else best.worst_target
    yield Undetermined(
        what="whether the busiest stretch keeps the targets",
        figures={"headroom": best.headroom, "worst_ratio": best.worst_ratio},
        text=f"all requests together do{f', {target} included' if target else ''}, and the busiest "
        f"stretch carries {best.headroom:.2f} times its traffic",
        would="a peak_s that is as short as the promise is meant to hold",
    )


def percentiles_have_requests_beyond(answer: Answer) -> Iterator[Undetermined]:
    """Enough requests lie beyond every percentile for it to repeat itself."""
    if answer.traffic is None:
        return
    for target in answer.targets:
        level = target.partition(".")[2]
        share = 1 - int(level[1:]) / 100 if level.startswith("p") else 1.0
        beyond = share * answer.traffic.num_requests
        if beyond < _LEAST_BEYOND:
            yield Undetermined(
                what=f"{target} to better than {100 / math.sqrt(max(beyond, 1.0)):.0f} %",
                figures={"requests_beyond": beyond},
                text=f"only {beyond:.0f} requests lie beyond it",
                would=_FEWER,
            )


def bands_determine_their_figures(answer: Answer) -> Iterator[Undetermined]:
    """Bands of a factor of two determine nothing, as in a run."""
    figures = {} if answer.confidence is None else answer.confidence.figures
    wide = {
        target: one
        for target, one in figures.items()
        if target in answer.targets and one.low and one.high and one.high >= 2 * one.low
    }
    if wide:
        ends = {
            f"{name} {end}": getattr(wide[name], end) for name in wide for end in ("low", "high")
        }
        yield Undetermined(
            what=f"{', '.join(wide)}, allowing for the simulator's error",
            figures=ends,
            text="the ends of the 80 % band differ by a factor of two or more",
            would="serving points of this model on this GPU, or a cluster with more headroom",
        )


def _list_rows(answer: Answer) -> list[DeploymentRow]:
    rows = [*answer.candidates, *answer.best_of_each_model.values()]
    return rows if answer.recommended is None else [answer.recommended, *rows]


def _list_parts(part: object) -> Iterator[Banded]:
    """Every part with bands in some parts of an answer."""
    if isinstance(part, Banded):
        yield part
    if isinstance(part, Part):
        part = [getattr(part, name) for name in type(part).model_fields if name != "why_not"]
    elif isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, tuple | list):
        for one in part:
            yield from _list_parts(one)


CERTAIN: tuple[Callable[[Answer], Iterator[str]], ...] = (
    the_recommended_row_is_the_first_of_the_table,
    rows_that_meet_the_targets_do,
    models_are_named_once,
    bands_hold_their_figures,
    probabilities_add_up,
    what_surely_meets_does_not_miss,
    bands_of_headroom_begin_where_few_samples_miss,
    what_carries_twice_the_traffic_needs_no_more_for_it,
)
ON_AVERAGE: tuple[Callable[[Answer], Iterator[Undetermined]], ...] = (
    smaller_sizes_miss,
    more_lost_costs_no_less,
    more_load_costs_no_less,
    what_meets_on_all_requests_meets_on_a_stretch,
    percentiles_have_requests_beyond,
    bands_determine_their_figures,
)
