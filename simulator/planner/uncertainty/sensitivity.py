"""Sensitivity of the choice: the same question with more traffic, longer prompts, slower links,
more skew or other prices; and mixtures of experts against dense models: how much dearer the other
kind is, and where that turns round.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.base.formats import seconds, times
from simulator.planner.conditions import AS_ASKED, Change, Trials, list_recorded_skews
from simulator.planner.estimate import Estimator
from simulator.planner.evaluations import FigureBands, best_of_each, row_of, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.samples import (
    CostSamples,
    GpuDemand,
    Priced,
    find_band,
    find_ratio_band,
    interpolate_gpus,
    name_band,
    price,
)
from simulator.planner.screen import Candidate, by_cost
from simulator.planner.search import SearchResult
from simulator.planner.traffic import count_needed
from simulator.results.answer import Comparison
from simulator.results.answer.certainty import Brief, Flip, RatePoint, SensitivityRow
from simulator.results.plan_sentences import compare_kinds, state_only_kind

_PRICE_CUT = 1 - 0.7
"""Share by which the price of a GPU-hour is lower."""
_ALIKE = 0.1
"""Share by which a rate may differ from what a change says."""
_MOST_CANDIDATES = 6
"""Candidates that are explored again: about as many as cores of a small machine."""


class WhatIf(NamedTuple):
    """One thing that may turn out differently."""

    name: str
    text: str
    change: Change = AS_ASKED
    """Change that takes simulation; prices take none."""


WHAT_IFS = (
    WhatIf("traffic", "twice the traffic", Change(rate=2.0)),
    WhatIf("prompts", "prompts four times as long", Change(prompts=4.0)),
    WhatIf("network", "a network half as fast", Change(network=0.5)),
    WhatIf("skew", "twice the skew of experts", Change(skew=2.0)),
)


def list_changes(result: SearchResult) -> dict[Candidate, list[Change]]:
    """Changes under which candidates are explored again: the best of every model, and then the best
    of other kinds. A dense model has no skew.
    """
    chosen = dict.fromkeys(one.candidate for one in best_of_each(result).values())
    seen = {_kind(candidate) for candidate in chosen}
    for evaluation in result.met:
        kind = _kind(evaluation.candidate)
        if kind not in seen and len(chosen) < _MOST_CANDIDATES:
            chosen.setdefault(evaluation.candidate)
            seen.add(kind)
    return {
        candidate: [
            AS_ASKED,
            *(
                one.change
                for one in WHAT_IFS
                if one.name != "skew" or result.space.models[candidate.shape.model].moe is not None
            ),
        ]
        for candidate in chosen
    }


def _kind(candidate: Candidate) -> tuple[int, int, bool]:
    return (candidate.shape.model, candidate.shape.machines, candidate.prefill is None)


@dataclass(frozen=True)
class Sensitivity:
    """Rows for changes of one question: what is best then, what it costs, and whether that is
    another choice than without the change.

    Bands are of the deployments that a row names, with the calibration off by as much under the
    change as without it.
    """

    result: SearchResult
    explored: Mapping[Candidate, Mapping[Change, Priced]]
    """Evaluations under all of :func:`list_changes`."""
    costs: CostSamples
    stretch: str = ""
    """Requests that the evaluations are of, in words."""

    def list_rows(self) -> list[SensitivityRow]:
        """All rows; none where nothing meets the targets as asked."""
        base = _find_cheapest(self._price_under(AS_ASKED))
        if base is None:
            return []
        rows = [
            self.describe(one, self._price_under(one.change), base, self._note(one))
            for one in WHAT_IFS
        ]
        machines, all_cheaper = self.result.space.machines, WhatIf("price", "GPUs 30 % cheaper")
        rows.append(self._cut_prices(all_cheaper, range(len(machines))))
        for place, one in enumerate(machines if len(machines) > 1 else ()):
            if one.price_per_gpu_hour > 0:
                cluster = one.offer.cluster
                cheaper = WhatIf(f"price of {cluster}", f"GPUs of {cluster} 30 % cheaper")
                rows.append(self._cut_prices(cheaper, [place]))
        return rows

    def _price_under(self, change: Change) -> list[Priced]:
        return [known.get(change, known[AS_ASKED]) for known in self.explored.values()]

    def _cut_prices(self, what: WhatIf, cheaper: Collection[int]) -> SensitivityRow:
        """Compare everything that was found at other prices of machines; electricity costs the
        same.
        """
        machines = self.result.space.machines
        known = [price(one) for one in self.result.met]
        changed = []
        for one in known:
            place, size = one.evaluation.candidate.shape.machines, one.evaluation.size or 0
            cut = _PRICE_CUT * size * machines[place].price_per_gpu_hour
            changed.append(one._replace(cost=one.cost - cut) if place in cheaper else one)
        base = _find_cheapest(known)
        if base is None:
            raise ValueError("nothing was found")
        return self.describe(what, changed, base)

    def describe(
        self, what: WhatIf, priced: Sequence[Priced], base: Priced, note: str = ""
    ) -> SensitivityRow:
        """The row of one change, which is simulated at both ends of the calibration's band.

        Args:
            priced: all deployments under the change.
            base: the best one without it.
        """
        best = _find_cheapest(priced)
        moe, dense = (self._find_best(priced, kind) for kind in ("MoE", "dense"))
        nothing = f"no deployment that was tried meets the targets then. {note}".strip()
        ratio = best.divide(base) if best else None
        moe_ratio = moe.divide(dense) if moe and dense else None
        row: dict[str, object] = {
            "name": what.name,
            "change": what.text,
            "cost_per_hour": None if best is None else best.cost,
            "base_cost_per_hour": base.cost,
            "cost_ratio": ratio,
            "deployment": None if best is None else text_of(self.result, best.evaluation),
            "flips": best is None or self._choice(best) != self._choice(base),
            "best_moe": self._summarise(moe),
            "best_dense": self._summarise(dense),
            "cost_moe_over_dense": moe_ratio,
            "note": note if best is not None else nothing,
        }
        best, moe, dense = (self._try_ends(one, what.change) for one in (best, moe, dense))
        mine, theirs, of_moe, of_dense = map(self.costs.draw_priced, (best, base, moe, dense))
        if best is not None and best.cost > 0:
            row |= name_band("cost_per_hour", best.cost, find_band(mine))
        row |= name_band("cost_ratio", ratio, find_ratio_band(mine, theirs))
        row |= name_band("cost_moe_over_dense", moe_ratio, find_ratio_band(of_moe, of_dense))
        return SensitivityRow.model_validate(row)

    def _try_ends(self, priced: Priced | None, change: Change) -> Priced | None:
        """Add the GPUs that a deployment needs with the calibration off, under other conditions
        than of traffic.
        """
        known = None if priced is None else self.costs.demands.get(priced.evaluation.candidate)
        if priced is None or priced.rate is not None or known is None:
            return priced
        slower = sorted({1.0, *known.error.edges})
        asked = self.result.trials.find(priced.evaluation.candidate, AS_ASKED)
        if asked.size is None:  # on the stretch, though not on all requests
            return priced
        then, now = (
            [self._find_needed(one, under._replace(slower=factor)) for factor in slower]
            for one, under in ((priced.evaluation, change), (asked, AS_ASKED))
        )
        if then == now:  # what a change leaves alone is as certain as before
            return priced._replace(rate=1.0)
        as_asked = interpolate_gpus(known, np.array(slower))
        gpus = (as_asked * np.array(then) / np.array(now)).tolist()
        finite = [number if math.isfinite(number) else 0.0 for number in gpus]
        return priced._replace(demand=GpuDemand(known.error, slower, finite))

    def _find_needed(self, evaluation: Evaluation, change: Change) -> float:
        """GPUs that just do with slower or faster steps, from one trial at the size that was
        found.
        """
        sized = min(
            (worst, size) for size, worst in evaluation.tried if size.size == evaluation.size
        )
        if change.slower == 1:
            return evaluation.needed
        trial = self.result.trials.trial(evaluation.candidate, sized[1], change)
        return evaluation.estimate_needed(trial.worst)

    def _find_best(self, priced: Sequence[Priced], kind: str) -> Priced | None:
        space = self.result.space
        return _find_cheapest(
            [one for one in priced if space.kind(one.evaluation.candidate.shape) == kind]
        )

    def _choice(self, priced: Priced) -> tuple[object, ...]:
        """Model, pruning and machines, whatever the settings."""
        shape = priced.evaluation.candidate.shape
        variant = self.result.space.variants[shape.model]
        return variant.number, variant.pruning, shape.machines

    def _summarise(self, priced: Priced | None) -> Brief | None:
        if priced is None or priced.evaluation.size is None:
            return None
        return Brief(
            model=self.result.space.models[priced.evaluation.candidate.shape.model].name,
            deployment=text_of(self.result, priced.evaluation),
            gpus=priced.evaluation.size,
            cost_per_hour=priced.cost,
        )

    def _note(self, one: WhatIf) -> str:
        """Restrictions of a row, in sentences."""
        parts = [self.stretch] if self.stretch else []
        requests = self.result.trials.read_traffic(one.change)
        if not requests.is_steady and self.result.traffic.is_steady:
            lasts = f"the requests are over within {seconds(requests.duration_s)}"
            parts.append(f"Not determined: {lasts}, too soon for a steady state.")
        if one.name == "traffic":
            parts += self._note_rate(requests.rate_per_s, one.change.rate)
        if one.name == "prompts":
            parts += self._note_cuts(one.change.prompts)
        if one.name == "skew":
            parts += self._note_skews()
        return " ".join(parts)

    def _note_rate(self, rate_per_s: float, factor: float) -> list[str]:
        more = rate_per_s / self.result.trials.read_traffic(AS_ASKED).rate_per_s
        peak_s = self.result.question.peak_s
        if peak_s is None or abs(more / factor - 1) < _ALIKE:
            return []
        return [
            f"{times(more)} the requests a second: the busiest {seconds(peak_s)} then hold "
            f"{seconds(factor * peak_s)} of the planned traffic."
        ]

    def _note_cuts(self, factor: float) -> list[str]:
        trace, notes = self.result.traffic.trace, []
        for model in self.result.space.models:
            if model.max_context_tokens is None:
                continue
            tokens = trace.num_input * factor + trace.num_output
            share = float((tokens > model.max_context_tokens).mean())
            if share > 0:
                few = "fewer than 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
                notes.append(
                    f"{model.name}: {few} of prompts are cut, so that they fit its context "
                    f"of {model.max_context_tokens:,} tokens."
                )
        return list(dict.fromkeys(notes))

    def _note_skews(self) -> list[str]:
        space = self.result.space
        if all(model.moe is None for model in space.models):
            return ["No model routes tokens to experts."]
        return [
            f"Not applicable to {name}, whose experts' popularity was recorded, not drawn."
            for name in list_recorded_skews(space.question, space.folder)
        ]


def _find_cheapest(known: Sequence[Priced]) -> Priced | None:
    """The first of the cheapest, of which the one that takes up fewest GPUs."""
    met = [one for one in known if one.evaluation.cluster_size is not None]
    return min(met, key=lambda one: (one.cost, one.evaluation.num_gpus), default=None)


RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Times the traffic that was asked for."""
_BISECTIONS = 3


def best_of_kind(result: SearchResult, kind: str) -> Evaluation | None:
    """The cheapest deployment of a kind, see :meth:`simulator.planner.space.Space.kind`."""
    return next(
        (
            one
            for one in best_of_each(result).values()
            if result.space.kind(one.candidate.shape) == kind
        ),
        None,
    )


class Rivals(NamedTuple):
    """Deployments of a kind that are compared at other traffic."""

    now: Candidate
    """The best at the traffic that was asked for."""
    little: Candidate
    """The one that the screen expects to be best at the least traffic."""
    much: Candidate
    """The one that the screen expects to be best at the most traffic."""
    others: tuple[Candidate, ...] = ()
    """Others that what-ifs explore as asked and at twice the traffic."""

    def select_at(self, rate: float) -> tuple[Candidate, ...]:
        """Candidates that may be best at a rate."""
        other = self.little if rate < 1 else self.much if rate > 1 else self.now
        others = self.others if rate in (1.0, 2.0) else ()
        return tuple(dict.fromkeys((self.now, other, *others)))


def rivals(result: SearchResult, best: Evaluation, explored: Iterable[Candidate] = ()) -> Rivals:
    """The best of a kind, and others of the kind that the screen kept.

    Args:
        explored: candidates that what-ifs explore.
    """
    kind = result.space.kind(best.candidate.shape)
    kept = [
        one
        for part in result.screened.values()
        for one in part.candidates
        if result.space.kind(one.shape) == kind
    ]
    little, much = (
        min(kept, key=lambda one: _estimate_cost(result, one, rate), default=best.candidate)
        for rate in (RATES[0], RATES[-1])
    )
    little, much = (
        best.candidate if _is_alike(one, best.candidate) else one for one in (little, much)
    )
    others = tuple(one for one in explored if result.space.kind(one.shape) == kind)
    return Rivals(best.candidate, little, much, others)


def _is_alike(one: Candidate, other: Candidate) -> bool:
    """Whether they are the same deployment but for the number of replicas: as the screen expected
    it, and as it was found.
    """
    return (one.shape, one.budget, one.prefill) == (other.shape, other.budget, other.prefill)


def _estimate_cost(result: SearchResult, candidate: Candidate, rate: float) -> tuple[object, ...]:
    """Cost of a candidate at another rate, going by the screen."""
    counts = (candidate.replicas, candidate.prefill_replicas)
    replicas, prompts = (math.ceil(count * rate) for count in counts)
    size = result.space.find_cluster(candidate.sides, (replicas, prompts))
    gpu_hour = result.space.machines_at(candidate.shape).gpu_hour
    cost = math.inf if size is None else size * gpu_hour
    return (cost, candidate.count_gpus(replicas, prompts), *by_cost(candidate))


class OverRates(NamedTuple):
    """The cheapest mixture of experts and dense model at several rates of requests."""

    points: list[tuple[float, Priced, Priced]]
    """Rate, the cheapest mixture of experts and the cheapest dense model."""
    flips: list[Flip]
    """Rates at which the cheaper kind changes."""


def over_rates(trials: Trials, moe: Rivals, dense: Rivals) -> OverRates:
    """Costs of both kinds over :data:`RATES`, and the rates at which the cheaper kind changes."""

    def try_rate(rate: float) -> tuple[Priced, Priced]:
        first, second = (
            min(
                (price(trials.find(one, Change(rate=rate))) for one in kind.select_at(rate)),
                key=lambda one: one.cost,
            )
            for kind in (moe, dense)
        )
        more = found.get(min((one for one in found if one > rate), default=rate))
        if more is not None:  # what carries more carries this
            first, second = (
                min(pair, key=lambda one: one.cost)
                for pair in zip((first, second), more, strict=True)
            )
        return first, second

    found: dict[float, tuple[Priced, Priced]] = {}

    def add_demand(one: Priced, rate: float) -> Priced:
        if one.evaluation.candidate in (moe.now, *moe.others, dense.now, *dense.others):
            return one._replace(rate=rate)  # known as asked
        estimate = Estimator(trials, Change(rate=rate)).estimate(one.evaluation)
        return one._replace(demand=estimate and estimate.demand, rate=rate)

    points: list[tuple[float, Priced, Priced]] = []
    flips: list[Flip] = []
    last: tuple[float, str] | None = None
    rates = list_rates(trials)
    for rate in reversed(rates):
        found[rate] = try_rate(rate)
    for rate in rates:
        first, second = found[rate]
        points.append((rate, add_demand(first, rate), add_demand(second, rate)))
        cheaper = _cheaper(first, second)
        if cheaper == "same":
            continue
        if last is not None and last[1] != cheaper:
            low, high = last[0], rate
            for _ in range(_BISECTIONS):
                middle = math.sqrt(low * high)
                is_before = _cheaper(*try_rate(middle)) == last[1]
                low, high = (middle, high) if is_before else (low, middle)
            turn, kinds = math.sqrt(low * high), {"before": last[1], "after": cheaper}
            flips.append(
                Flip(what="traffic", **kinds, rate=turn, requests_per_s=_read_rate(trials, turn))
            )
        last = (rate, cheaper)
    return OverRates(points, flips)


def list_rates(trials: Trials) -> list[float]:
    """Rates of :data:`RATES` at which the requests determine an answer: they last long enough for a
    steady state, and enough lie beyond the highest percentile. All, where they do not as asked.
    """
    least = count_needed(trials.space.question) / 2

    def is_enough(rate: float) -> bool:
        traffic = trials.read_traffic(Change(rate=rate))
        return traffic.is_steady and traffic.num_requests >= least

    return [rate for rate in RATES if is_enough(rate)] if is_enough(1.0) else list(RATES)


def changes_over_rates(
    trials: Trials, moe: Rivals, dense: Rivals
) -> list[tuple[Candidate, Change]]:
    """Explorations that :func:`over_rates` asks for in any case; others lie between two rates."""
    return [
        (one, Change(rate=rate))
        for rate in list_rates(trials)
        for kind in (moe, dense)
        for one in kind.select_at(rate)
    ]


def _read_rate(trials: Trials, rate: float) -> float:
    """Requests a second at a factor: a peak of so many seconds holds others then."""
    return trials.read_traffic(Change(rate=rate, is_whole=True)).rate_per_s


def _cheaper(moe: Priced, dense: Priced) -> str:
    if moe.cost == dense.cost:
        return "same"
    return "moe" if moe.cost < dense.cost else "dense"


def compare_at_targets(
    result: SearchResult,
    rates: OverRates | None,
    sensitivities: Sequence[SensitivityRow],
    costs: CostSamples,
    bands: Mapping[Candidate, FigureBands],
) -> Comparison | None:
    """The comparison; ``None`` where nothing meets the targets.

    Args:
        rates: both kinds at other rates, where there are both.
        sensitivities: rows of the sensitivity.
        bands: of deployments' figures.
    """
    best = {kind: best_of_kind(result, kind) for kind in ("MoE", "dense", "pruned")}
    if best["MoE"] is None and best["dense"] is None:
        return None
    rows = [one and row_of(result, one, bands.get(one.candidate)) for one in best.values()]
    moe, dense, pruned = (one and price(one) for one in best.values())
    ratio = moe.divide(dense) if moe and dense else None
    pruned_ratio = pruned.divide(dense) if pruned and dense else None
    drawn = [costs.draw_cheapest(kind) for kind in best]
    points = [_point(result, costs, *point) for point in (rates.points if rates else [])]
    flips = [*(rates.flips if rates else []), *_list_flips(ratio, sensitivities)]
    if rows[0] is None or rows[1] is None:
        listed = [model.moe is not None for model in result.space.models]
        text = state_only_kind(rows[0] is not None, listed)
    else:
        text = compare_kinds(rows[0], rows[1], ratio, points, flips)
    return Comparison.model_validate(
        {
            **dict(zip(("moe", "dense", "pruned"), rows, strict=True)),
            "pruned_cost_ratio": pruned_ratio,
            **name_band("pruned_cost_ratio", pruned_ratio, find_ratio_band(drawn[2], drawn[1])),
            "cost_ratio": ratio,
            **name_band("cost_ratio", ratio, find_ratio_band(*drawn[:2])),
            "rates": points,
            "flips": flips,
            "text": str(text),
        }
    )


def _list_flips(ratio: float | None, sensitivities: Sequence[SensitivityRow]) -> list[Flip]:
    """Changes other than of the traffic at which the cheaper kind changes."""
    return [
        Flip(what=row.name, change=row.change, before=_name(ratio), after=_name(other))
        for row in sensitivities
        if (other := row.cost_moe_over_dense) is not None
        and ratio is not None
        and (ratio - 1) * (other - 1) < 0
    ]


def _point(
    result: SearchResult, costs: CostSamples, rate: float, moe: Priced, dense: Priced
) -> RatePoint:
    """Compare the cheapest mixture of experts and dense model at one rate of requests."""
    is_known = 0 < dense.cost < math.inf and moe.cost < math.inf
    ratio = moe.cost / dense.cost if is_known else None
    drawn = [costs.draw_priced(one) for one in (moe, dense)]
    point: dict[str, object] = {"rate": rate, "requests_per_s": _read_rate(result.trials, rate)}
    for name, one, draws in zip(("moe", "dense"), (moe, dense), drawn, strict=True):
        key = f"{name}_cost_per_hour"
        point |= {key: one.finite_cost}
        point |= name_band(key, one.finite_cost or None, find_band(draws))
    banded = name_band("cost_ratio", ratio, find_ratio_band(*drawn))
    return RatePoint.model_validate({**point, "cost_ratio": ratio, **banded})


def _name(ratio: float) -> str:
    return "moe" if ratio < 1 else "dense"
