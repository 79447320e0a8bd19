"""How sure the choice is: bands from the calibration's error, other samples of requests and other
samples of experts' choices.

The few deployments that are compared most closely are simulated with the calibration off by what it
may be off (:mod:`simulator.planner.samples`), and with other samples;
:mod:`simulator.planner.row_bands` gives all other figures theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from simulator.planner.closed_form import Curve
from simulator.planner.estimate import empty_table
from simulator.planner.evaluations import explorer, text_of
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.headroom import headroom
from simulator.planner.miss_probability import starts
from simulator.planner.samples import (
    DRAWS,
    Z_80,
    Draws,
    Floats,
    Table,
    band_of,
    first_token_off,
    share,
)
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult
from simulator.planner.trial import BACKLOG, Outcome
from simulator.planner.whatif import AS_ASKED, Change, Trials, gpu_hour, is_whole
from simulator.workload.requests import longest_tokens

_Z = (-2.3, -Z_80, Z_80, 2.3)
"""Standard deviations at which costs are tabulated, besides what the calibration says."""
_EDGES = 2
"""Bisections between the slowest calibration that meets the targets and the first that does not."""
_LOAD_STEP = 1.04
_METHOD: tuple[dict[str, Any], ...] = (
    {
        "name": "errors in common",
        "low": None,
        "high": None,
        "text": (
            "Deployments that run the same kernels of one engine on one family of GPUs share half "
            "of the variance of each part of a step; the rest is each one's own"
        ),
    },
    {
        "name": "closed form",
        "low": None,
        "high": None,
        "text": (
            "Only the first choices are simulated with the calibration off and with other "
            "samples; bands of all others are estimated from the average load, "
            "without other choices of experts"
        ),
    },
)
"""How bands are made."""


def table_of(trials: Trials, candidate: Candidate) -> Table:
    """Costs of one deployment over what its calibration may be off."""
    explorer = trials.explorer(candidate, AS_ASKED)
    plan = explorer.plan(ClusterSize(0, 1, 1 if candidate.prefill is not None else 0))
    found = empty_table(Curve(plan, explorer.traffic, candidate.budget), plan, candidate)
    slower = sorted({1.0, *(math.exp(found.middle + z * found.spread) for z in _Z)})
    gpus = [_size(trials, candidate, factor) for factor in slower]
    for _ in range(_EDGES):
        edge = next((n for n in range(1, len(slower)) if gpus[n - 1] and not gpus[n]), None)
        if edge is None:
            break
        middle = math.sqrt(slower[edge - 1] * slower[edge])
        slower.insert(edge, middle)
        gpus.insert(edge, _size(trials, candidate, middle))
    return found._replace(slower=slower, gpus=gpus)


def _size(trials: Trials, candidate: Candidate, slower: float) -> int:
    cluster_size = trials.find(candidate, Change(slower=slower)).cluster_size
    return 0 if cluster_size is None else cluster_size.size


def redrawn(
    trials: Trials, candidates: tuple[Candidate, ...], cluster_size: ClusterSize
) -> list[dict[str, Any]]:
    """For each other sample: GPUs that each candidate needs, and what the first one does at its
    recommended size.
    """
    rows = []
    for draw in DRAWS:
        change = Change(draw=draw)
        found = [trials.find(candidate, change).cluster_size for candidate in candidates]
        outcome = trials.trial(candidates[0], cluster_size, change)
        rows.append({"gpus": [0 if one is None else one.size for one in found], **_made(outcome)})
    return rows


def at_its_size(
    trials: Trials, candidate: Candidate, cluster_size: ClusterSize, table: Table
) -> list[dict[str, Any]]:
    """What the recommended size does and carries if steps take so many times as long; of the
    fastest, the median and the slowest.
    """
    rows = []
    for factor in table.slower:
        change = Change(slower=factor)
        outcome = trials.trial(candidate, cluster_size, change)
        rows.append({"slower": factor, **_made(outcome)})
    return rows


def _made(outcome: Outcome) -> dict[str, Any]:
    measured = {"output_tokens_per_s": outcome.output_tokens_per_s} | outcome.measured
    return {
        "ratios": outcome.ratios,
        "measured": {name: value for name, value in measured.items() if name != BACKLOG},
    }


def carried(
    trials: Trials, candidate: Candidate, cluster_size: ClusterSize, slower: float
) -> float:
    """Times the traffic that so many replicas carry with all targets met if steps take so many
    times as long.
    """
    return headroom(trials.explorer(candidate, Change(slower=slower)), cluster_size, _LOAD_STEP)


class ComparedChoices(NamedTuple):
    """The choices that are compared, and everything that was found about them."""

    first: Evaluation
    second: Evaluation | None
    """The next one that is another deployment: other machines, model, format or split."""
    moe: Evaluation | None
    dense: Evaluation | None
    tables: Mapping[Candidate, Table]
    redrawn: list[dict[str, Any]]
    """Of :func:`redrawn` for the first and the second."""
    slowed: list[dict[str, Any]]
    """Of :func:`at_its_size` for the first."""
    room: tuple[float, float]
    """Of :func:`carried` where the calibration is too fast and too slow."""

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that need a table."""
        chosen = (self.first, self.second, self.moe, self.dense)
        return tuple(
            dict.fromkeys(evaluation.candidate for evaluation in chosen if evaluation is not None)
        )


def second_choice(result: SearchResult) -> Evaluation | None:
    """The cheapest deployment that differs from the first in more than a setting."""

    def kind(evaluation: Evaluation) -> tuple[Any, ...]:
        shape, prefill = evaluation.candidate.shape, evaluation.candidate.prefill
        plain = shape._replace(
            kv_dtype="", slots=0, overlap="", dispatch_dtype="", placement="", max_sequences=0
        )
        return (*plain, prefill and (prefill.tp, prefill.attention_dp, prefill.pp))

    met = [evaluation for evaluation in result.evaluations if evaluation.cluster_size is not None]
    return next((evaluation for evaluation in met[1:] if kind(evaluation) != kind(met[0])), None)


class Costs:
    """Draws of what deployments cost, the same for all of them."""

    def __init__(self, result: SearchResult, tables: Mapping[Candidate, Table]) -> None:
        self.draws = Draws(result.question.seed)
        self.tables = tables
        self._result = result
        self._is_free = all(
            gpu_hour(result.space, place) == 0 for place in range(len(result.space.machines))
        )

    def gpus(self, evaluation: Evaluation, table: Table | None = None) -> Floats | None:
        """``[n]`` GPUs that it needs, infinite where nothing meets the targets; ``None`` where that
        is not known.

        Args:
            table: under other circumstances than those that were asked for.
        """
        table = table or self.tables.get(evaluation.candidate)
        if table is None or evaluation.cluster_size is None:
            return None
        sizes = self._result.space.machines[evaluation.candidate.shape.machines].sizes
        base = table.gpus[table.slower.index(1.0)]
        return self.draws.gpus(table, sizes) * (
            evaluation.cluster_size.size / base if base else 1.0
        )

    def of(self, evaluation: Evaluation, table: Table | None = None) -> Floats | None:
        """``[n]`` costs per hour, likewise; GPUs where machines cost nothing."""
        gpus = self.gpus(evaluation, table)
        price = (
            1.0
            if self._is_free
            else gpu_hour(self._result.space, evaluation.candidate.shape.machines)
        )
        return None if gpus is None else gpus * price


def confidence(result: SearchResult, choices: ComparedChoices, costs: Costs) -> dict[str, Any]:
    """Bands of the recommended deployment's figures, and probabilities that the choice is right.

    ``beats_second`` counts draws in which the first costs no more than the second (a deployment
    beats itself in all), ``cheaper_than_second`` those in which it costs less (in none).
    """
    first = choices.first
    if first.cluster_size is None:
        return {}
    mine, table = costs.of(first), choices.tables[first.candidate]
    if mine is None:
        raise ValueError("the first choice has no table")
    low, high = band_of(mine)
    trials = explorer(result, first)
    begins = starts(trials.plan(first.cluster_size), longest_tokens(trials.traffic.trace))
    answer: dict[str, Any] = {
        "cost_low": low,
        "cost_high": high,
        "fails": float(np.isinf(mine).mean()),
        "starts": begins,
        "meets_targets": begins * _meets(choices, costs.draws),
        "headroom_low": min(choices.room),
        "headroom_high": max(choices.room),
        "beats_second": None,
        "cheaper_than_second": None,
        "second": None,
        "moe_beats_dense": None,
        "figures": figures(choices),
        "sources": [*_sources(result, table), *_others(result, table, costs), *_METHOD],
    }
    if choices.second is not None and (theirs := costs.of(choices.second)) is not None:
        answer |= {
            "beats_second": share(mine <= theirs, mine, theirs),
            "cheaper_than_second": share(mine < theirs, mine, theirs),
        }
        answer["second"] = text_of(result, choices.second)
    moe, dense = (None if one is None else costs.of(one) for one in (choices.moe, choices.dense))
    if moe is not None and dense is not None:
        answer["moe_beats_dense"] = share(moe < dense, moe, dense)
        answer["moe_costs_no_more_than_dense"] = share(moe <= dense, moe, dense)
        answer["cost_moe_over_dense_low"], answer["cost_moe_over_dense_high"] = band_of(
            over(moe, dense)
        )
    return answer


def over(costs: Floats, others: Floats) -> Floats:
    """Ratios in the draws in which the others meet the targets; infinite where they alone do."""
    kept = np.isfinite(others) & (others > 0)
    return np.asarray(costs[kept] / others[kept])


def noise_of(choices: ComparedChoices, place: int) -> tuple[float, ...]:
    """GPUs that the first or second choice needs with other samples over those with the one asked
    for.

    Infinite with a sample for which no size is enough; 1 where there is none for the one asked for.
    """
    candidate = (choices.first, choices.second)[place]
    table = choices.tables[candidate.candidate] if candidate is not None else None
    base = table.gpus[table.slower.index(1.0)] if table is not None else 0
    return tuple(
        (row["gpus"][place] or math.inf) / base if base else 1.0 for row in choices.redrawn
    )


def _meets(choices: ComparedChoices, draws: Draws) -> float:
    """Probability that the recommended size, as it is, meets all targets."""
    table = choices.tables[choices.first.candidate]
    slowness, score = draws.slowness(table), draws.score(table)
    grid = np.log([row["slower"] for row in choices.slowed])
    base = next(row for row in choices.slowed if row["slower"] == 1.0)["ratios"]
    kept = np.full(draws.count, True)
    for name in base:
        ratios = np.maximum.accumulate([max(row["ratios"][name], 1e-9) for row in choices.slowed])
        drawn = np.interp(np.log(slowness), grid, np.log(ratios))
        samples = np.log(
            [
                1.0,
                *(
                    max(row["ratios"][name], 1e-9) / max(base[name], 1e-9)
                    for row in choices.redrawn
                ),
            ]
        )
        if name.startswith("ttft"):
            least = math.log(max(base[name], 1e-9))
            drawn = np.maximum(drawn, least + first_token_off(table, score))
        kept &= drawn + samples[draws.sample] <= 1e-9
    return float(kept.mean())


def figures(choices: ComparedChoices) -> dict[str, dict[str, float]]:
    """80 % bands of what the recommended size does: the calibration's, widened by how other samples
    scatter.
    """
    table = choices.tables[choices.first.candidate]
    edges = [nearest(choices.slowed, edge) for edge in table.band]
    base = nearest(choices.slowed, 1.0)
    found = {}
    for name, value in base["measured"].items():
        ends = [edge["measured"][name] for edge in edges]
        if name.startswith("ttft"):
            ends += [value * edge for edge in table.ttft_band]
        others = [row["measured"][name] for row in choices.redrawn]
        low, high = widened(value, (min(ends), max(ends)), Z_80 * float(np.std([value, *others])))
        found[name] = {"value": value, "low": low, "high": high}
    return found


def nearest(slowed: list[dict[str, Any]], factor: float) -> dict[str, Any]:
    """Of :func:`at_its_size`, the row of a factor."""
    return min(slowed, key=lambda row: abs(float(row["slower"]) - factor))


def widened(value: float, ends: tuple[float, float], scatter: float) -> tuple[float, float]:
    """A band that holds the value, with independent scatter either way; not below 0.

    >>> widened(10.0, (7.0, 12.0), 4.0)
    (5.0, 14.47213595499958)
    """
    below, above = max(0.0, value - ends[0]), max(0.0, ends[1] - value)
    return max(0.0, value - math.hypot(below, scatter)), value + math.hypot(above, scatter)


def _sources(result: SearchResult, table: Table) -> list[dict[str, Any]]:
    noise = (1.0, *table.noise)
    samples = f"{len(DRAWS)} other samples of requests and of experts' choices"
    if not result.traffic.trace.provenance.startswith("generated"):
        samples = (
            f"{len(DRAWS)} other samples of experts' choices and of the trace's blocks, "
            "drawn with replacement"
        )
    stretch = "" if is_whole(result.traffic) else ", on the busiest stretch of the traffic"
    return [
        {
            "name": "calibration, time per token",
            "low": table.band[0],
            "high": table.band[1],
            "text": f"Measured over predicted, 80 % of cases: {table.source}",
        },
        {
            "name": "calibration, time to first token",
            "low": table.ttft_band[0],
            "high": table.ttft_band[1],
            "text": "Measured over predicted, 80 % of cases, of the same points",
        },
        {
            "name": "samples",
            "low": min(noise),
            "high": max(noise),
            "text": f"GPUs needed with {samples}, over those with the sample asked for{stretch}",
        },
    ]


def _others(result: SearchResult, first: Table, costs: Costs) -> list[dict[str, Any]]:
    """Calibrations of the deployments that have another than the first choice."""
    named: dict[tuple[tuple[float, float], str], dict[str, None]] = {}
    for evaluation in result.evaluations:
        table = costs.tables.get(evaluation.candidate)
        if evaluation.cluster_size is None or table is None or table.source == first.source:
            continue
        shape = evaluation.candidate.shape
        text = (
            f"{result.space.models[shape.model].name} "
            f"on {result.space.machines[shape.machines].offer.cluster}"
        )
        named.setdefault((table.band, table.source), {}).setdefault(text)
    return [
        {
            "name": f"time per token of {', '.join(texts)}",
            "low": band[0],
            "high": band[1],
            "text": f"Measured over predicted, 80 % of cases: {source}",
        }
        for (band, source), texts in named.items()
    ]
