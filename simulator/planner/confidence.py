"""How sure the choice is: bands from the calibration's error, other samples of requests and other
samples of experts' choices.

The few deployments that are compared most closely are simulated with the calibration off by what it
may be off (:mod:`simulator.planner.draws`), and with other samples;
:mod:`simulator.planner.row_bands` gives all other figures theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from simulator.planner.curve import Curve
from simulator.planner.draws import (
    DRAWS,
    Z_80,
    Draws,
    Floats,
    Table,
    band_of,
    first_token_off,
    share,
)
from simulator.planner.estimate import empty_table
from simulator.planner.explore import Finding, Sized
from simulator.planner.findings import explorer, text_of
from simulator.planner.risk import starts
from simulator.planner.room import headroom
from simulator.planner.screen import Option
from simulator.planner.search import Found
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


def table_of(trials: Trials, option: Option) -> Table:
    """Costs of one deployment over what its calibration may be off."""
    explorer = trials.explorer(option, AS_ASKED)
    plan = explorer.plan(Sized(0, 1, 1 if option.prefill is not None else 0))
    found = empty_table(Curve(plan, explorer.traffic, option.budget), plan, option)
    slower = sorted({1.0, *(math.exp(found.middle + z * found.spread) for z in _Z)})
    gpus = [_size(trials, option, factor) for factor in slower]
    for _ in range(_EDGES):
        edge = next((n for n in range(1, len(slower)) if gpus[n - 1] and not gpus[n]), None)
        if edge is None:
            break
        middle = math.sqrt(slower[edge - 1] * slower[edge])
        slower.insert(edge, middle)
        gpus.insert(edge, _size(trials, option, middle))
    return found._replace(slower=slower, gpus=gpus)


def _size(trials: Trials, option: Option, slower: float) -> int:
    sized = trials.find(option, Change(slower=slower)).sized
    return 0 if sized is None else sized.size


def redrawn(trials: Trials, options: tuple[Option, ...], sized: Sized) -> list[dict[str, Any]]:
    """For each other sample: GPUs that each option needs, and what the first one does at its
    recommended size.
    """
    rows = []
    for draw in DRAWS:
        change = Change(draw=draw)
        found = [trials.find(option, change).sized for option in options]
        outcome = trials.trial(options[0], sized, change)
        rows.append({"gpus": [0 if one is None else one.size for one in found], **_made(outcome)})
    return rows


def at_its_size(trials: Trials, option: Option, sized: Sized, table: Table) -> list[dict[str, Any]]:
    """What the recommended size does and carries if steps take so many times as long; of the
    fastest, the median and the slowest.
    """
    rows = []
    for factor in table.slower:
        change = Change(slower=factor)
        outcome = trials.trial(option, sized, change)
        rows.append({"slower": factor, **_made(outcome)})
    return rows


def _made(outcome: Outcome) -> dict[str, Any]:
    measured = {"output_tokens_per_s": outcome.output_tokens_per_s} | outcome.measured
    return {
        "ratios": outcome.ratios,
        "measured": {name: value for name, value in measured.items() if name != BACKLOG},
    }


def carried(trials: Trials, option: Option, sized: Sized, slower: float) -> float:
    """Times the traffic that so many replicas carry with all targets met if steps take so many
    times as long.
    """
    return headroom(trials.explorer(option, Change(slower=slower)), sized, _LOAD_STEP)


class Doubted(NamedTuple):
    """The choices that are compared, and everything that was found about them."""

    first: Finding
    second: Finding | None
    """The next one that is another deployment: other machines, model, format or split."""
    moe: Finding | None
    dense: Finding | None
    tables: Mapping[Option, Table]
    redrawn: list[dict[str, Any]]
    """Of :func:`redrawn` for the first and the second."""
    slowed: list[dict[str, Any]]
    """Of :func:`at_its_size` for the first."""
    room: tuple[float, float]
    """Of :func:`carried` where the calibration is too fast and too slow."""

    @property
    def options(self) -> tuple[Option, ...]:
        """All that need a table."""
        chosen = (self.first, self.second, self.moe, self.dense)
        return tuple(dict.fromkeys(finding.option for finding in chosen if finding is not None))


def second_choice(found: Found) -> Finding | None:
    """The cheapest deployment that differs from the first in more than a setting."""

    def kind(finding: Finding) -> tuple[Any, ...]:
        design, prefill = finding.option.design, finding.option.prefill
        plain = design._replace(
            kv_dtype="", slots=0, overlap="", dispatch_dtype="", placement="", max_sequences=0
        )
        return (*plain, prefill and (prefill.tp, prefill.attention_dp, prefill.pp))

    met = [finding for finding in found.findings if finding.sized is not None]
    return next((finding for finding in met[1:] if kind(finding) != kind(met[0])), None)


class Costs:
    """Draws of what deployments cost, the same for all of them."""

    def __init__(self, found: Found, tables: Mapping[Option, Table]) -> None:
        self.draws = Draws(found.question.seed)
        self.tables = tables
        self._found = found
        self._is_free = all(
            gpu_hour(found.space, place) == 0 for place in range(len(found.space.machines))
        )

    def gpus(self, finding: Finding, table: Table | None = None) -> Floats | None:
        """``[n]`` GPUs that it needs, infinite where nothing meets the targets; ``None`` where that
        is not known.

        Args:
            table: under other circumstances than those that were asked for.
        """
        table = table or self.tables.get(finding.option)
        if table is None or finding.sized is None:
            return None
        sizes = self._found.space.machines[finding.option.design.machines].sizes
        base = table.gpus[table.slower.index(1.0)]
        return self.draws.gpus(table, sizes) * (finding.sized.size / base if base else 1.0)

    def of(self, finding: Finding, table: Table | None = None) -> Floats | None:
        """``[n]`` costs per hour, likewise; GPUs where machines cost nothing."""
        gpus = self.gpus(finding, table)
        price = (
            1.0 if self._is_free else gpu_hour(self._found.space, finding.option.design.machines)
        )
        return None if gpus is None else gpus * price


def confidence(found: Found, doubted: Doubted, costs: Costs) -> dict[str, Any]:
    """Bands of the recommended deployment's figures, and probabilities that the choice is right.

    ``beats_second`` counts draws in which the first costs no more than the second (a deployment
    beats itself in all), ``cheaper_than_second`` those in which it costs less (in none).
    """
    first = doubted.first
    if first.sized is None:
        return {}
    mine, table = costs.of(first), doubted.tables[first.option]
    if mine is None:
        raise ValueError("the first choice has no table")
    low, high = band_of(mine)
    trials = explorer(found, first)
    begins = starts(trials.plan(first.sized), longest_tokens(trials.traffic.trace))
    answer: dict[str, Any] = {
        "cost_low": low,
        "cost_high": high,
        "fails": float(np.isinf(mine).mean()),
        "starts": begins,
        "meets_targets": begins * _meets(doubted, costs.draws),
        "headroom_low": min(doubted.room),
        "headroom_high": max(doubted.room),
        "beats_second": None,
        "cheaper_than_second": None,
        "second": None,
        "moe_beats_dense": None,
        "figures": figures(doubted),
        "sources": [*_sources(found, table), *_others(found, table, costs), *_METHOD],
    }
    if doubted.second is not None and (theirs := costs.of(doubted.second)) is not None:
        answer |= {
            "beats_second": share(mine <= theirs, mine, theirs),
            "cheaper_than_second": share(mine < theirs, mine, theirs),
        }
        answer["second"] = text_of(found, doubted.second)
    moe, dense = (None if one is None else costs.of(one) for one in (doubted.moe, doubted.dense))
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


def noise_of(doubted: Doubted, place: int) -> tuple[float, ...]:
    """GPUs that the first or second choice needs with other samples over those with the one asked
    for.

    Infinite with a sample for which no size is enough; 1 where there is none for the one asked for.
    """
    option = (doubted.first, doubted.second)[place]
    table = doubted.tables[option.option] if option is not None else None
    base = table.gpus[table.slower.index(1.0)] if table is not None else 0
    return tuple(
        (row["gpus"][place] or math.inf) / base if base else 1.0 for row in doubted.redrawn
    )


def _meets(doubted: Doubted, draws: Draws) -> float:
    """Probability that the recommended size, as it is, meets all targets."""
    table = doubted.tables[doubted.first.option]
    slowness, score = draws.slowness(table), draws.score(table)
    grid = np.log([row["slower"] for row in doubted.slowed])
    base = next(row for row in doubted.slowed if row["slower"] == 1.0)["ratios"]
    kept = np.full(draws.count, True)
    for name in base:
        ratios = np.maximum.accumulate([max(row["ratios"][name], 1e-9) for row in doubted.slowed])
        drawn = np.interp(np.log(slowness), grid, np.log(ratios))
        samples = np.log(
            [
                1.0,
                *(
                    max(row["ratios"][name], 1e-9) / max(base[name], 1e-9)
                    for row in doubted.redrawn
                ),
            ]
        )
        if name.startswith("ttft"):
            least = math.log(max(base[name], 1e-9))
            drawn = np.maximum(drawn, least + first_token_off(table, score))
        kept &= drawn + samples[draws.sample] <= 1e-9
    return float(kept.mean())


def figures(doubted: Doubted) -> dict[str, dict[str, float]]:
    """80 % bands of what the recommended size does: the calibration's, widened by how other samples
    scatter.
    """
    table = doubted.tables[doubted.first.option]
    edges = [nearest(doubted.slowed, edge) for edge in table.band]
    base = nearest(doubted.slowed, 1.0)
    found = {}
    for name, value in base["measured"].items():
        ends = [edge["measured"][name] for edge in edges]
        if name.startswith("ttft"):
            ends += [value * edge for edge in table.ttft_band]
        others = [row["measured"][name] for row in doubted.redrawn]
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


def _sources(found: Found, table: Table) -> list[dict[str, Any]]:
    noise = (1.0, *table.noise)
    samples = f"{len(DRAWS)} other samples of requests and of experts' choices"
    if not found.traffic.trace.provenance.startswith("generated"):
        samples = (
            f"{len(DRAWS)} other samples of experts' choices and of the trace's blocks, "
            "drawn with replacement"
        )
    stretch = "" if is_whole(found.traffic) else ", on the busiest stretch of the traffic"
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


def _others(found: Found, first: Table, costs: Costs) -> list[dict[str, Any]]:
    """Calibrations of the deployments that have another than the first choice."""
    named: dict[tuple[tuple[float, float], str], dict[str, None]] = {}
    for finding in found.findings:
        table = costs.tables.get(finding.option)
        if finding.sized is None or table is None or table.source == first.source:
            continue
        design = finding.option.design
        text = (
            f"{found.space.models[design.model].name} "
            f"on {found.space.machines[design.machines].offer.cluster}"
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
