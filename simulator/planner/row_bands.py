"""Bands of every figure of an answer: 80 % of what the calibration's error and other samples make
of it.

``x_low`` and ``x_high`` beside a figure ``x`` hold it; ``None`` is an end that there is none of,
where no cluster within the limits would do or queues would grow without bound. Deployments that
were not simulated with the calibration off are estimated in closed form
(:mod:`simulator.planner.estimate`); ``band`` says which. Probabilities are shares of joint draws
(:mod:`simulator.planner.samples`): ``is_best_probability`` of those in which a deployment is the
cheapest, of which the one that the plan lists first is taken where several cost the same, so that
they add up to 1 less the draws in which nothing meets the targets; ``none_cheaper_probability`` of
those in which nothing costs less, which counts all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.planner.confidence import ComparedChoices, Costs, figures, over, widened
from simulator.planner.estimate import Estimate, Estimator
from simulator.planner.evaluations import row_of
from simulator.planner.explore import ClusterSize, Evaluation, Explorer
from simulator.planner.losses import with_losses
from simulator.planner.samples import DRAWS, Z_80, Floats, Table, band_of, firsts, none_cheaper
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult
from simulator.planner.trial import Outcome
from simulator.planner.whatif import AS_ASKED, Change, Trials, is_whole

SIMULATED, CLOSED = "simulated", "closed form"
_DEARER = (
    "gpus",
    "cost_per_hour",
    "cost_power_per_hour",
    "cost_per_million_output_tokens",
    "cost_per_million_tokens",
    "cost_joules_per_output_token",
)
"""Figures that grow as the cluster does."""
_LATENCIES = ("tpot_s", "ttft_s", "e2e_s")
_SHARE = "attainment"

Band = tuple[float | None, float | None]


def estimates(
    trials: Trials, evaluations: Sequence[Evaluation], rate_per_s: float
) -> list[Estimate | None]:
    """The closed form of each evaluation about all requests, with other samples.

    Args:
        rate_per_s: of all requests.
    """
    estimator = Estimator(trials, samples=True)
    found = [estimator.estimate(evaluation, rate_per_s) for evaluation in evaluations]
    if trials.space.question.targets.attainment is None:
        return found
    return [
        one and one._replace(kept=_kept(trials, evaluation, one.table))
        for one, evaluation in zip(found, evaluations, strict=True)
    ]


def _kept(trials: Trials, evaluation: Evaluation, table: Table) -> tuple[float, ...]:
    if evaluation.cluster_size is None:
        return ()
    ends = [
        trials.trial(evaluation.candidate, evaluation.cluster_size, Change(slower=edge))
        for edge in table.edges
    ]
    return tuple(end.measured[_SHARE] for end in ends)


def held(name: str, value: float | None, band: Band) -> dict[str, float | None]:
    """Keys of a figure's band, which holds the figure.

    >>> held("gpus", 8.0, (9.0, None))
    {'gpus_low': 8.0, 'gpus_high': None}
    """
    low, high = band
    if value is None:
        return {}
    return {
        f"{name}_low": None if low is None else min(low, value),
        f"{name}_high": None if high is None else max(high, value),
    }


def rows(
    result: SearchResult,
    choices: ComparedChoices,
    costs: Costs,
    closed: Mapping[Candidate, Estimate | None],
) -> dict[Candidate, dict[str, Any]]:
    """Bands of every deployment that meets the targets, and how likely each is the cheapest of
    them.
    """
    met = [evaluation for evaluation in result.evaluations if evaluation.cluster_size is not None]
    scatter = _scatter(choices)
    bands: dict[Candidate, dict[str, Any]] = {
        evaluation.candidate: _row(
            result, evaluation, choices, costs, closed.get(evaluation.candidate), scatter
        )
        for evaluation in met
    }
    drawn = [costs.of(evaluation) for evaluation in met]
    known = [
        evaluation.candidate
        for evaluation, cost in zip(met, drawn, strict=True)
        if cost is not None
    ]
    together = np.array([cost for cost in drawn if cost is not None])
    if known:
        for candidate, best, least in zip(
            known, firsts(together), none_cheaper(together), strict=True
        ):
            bands[candidate] |= {
                "is_best_probability": float(best),
                "none_cheaper_probability": float(least),
            }
    return bands


def _row(
    result: SearchResult,
    evaluation: Evaluation,
    choices: ComparedChoices,
    costs: Costs,
    closed: Estimate | None,
    scatter: Mapping[str, float],
) -> dict[str, Any]:
    cluster_size, gpus = evaluation.cluster_size, costs.gpus(evaluation)
    if cluster_size is None or gpus is None:
        return {"band": None}
    row = row_of(result, evaluation)
    low, high = band_of(gpus)
    found_bands: dict[str, Any] = {
        "band": SIMULATED if evaluation.candidate in choices.tables else CLOSED
    }
    for name in _DEARER:
        found_bands |= held(
            name,
            row[name],
            tuple(
                None if end is None else row[name] * end / cluster_size.size for end in (low, high)
            ),  # type: ignore[arg-type]
        )
    if evaluation.candidate == choices.first.candidate:
        for name, one in figures(choices).items():
            if row.get(name) is not None and one["value"] > 0:  # of the stretch that was looked at
                found_bands |= held(
                    name,
                    row[name],
                    scaled(row[name], (one["low"] / one["value"], one["high"] / one["value"])),
                )
    elif closed is not None:
        for name in [name for name in row if name.startswith(_LATENCIES)]:
            ends = closed.factors[name.split(".")[0]]
            found_bands |= held(
                name,
                row[name],
                _finite(
                    widened(row[name], scaled(row[name], ends), row[name] * scatter.get(name, 0.0))
                ),
            )
    if _SHARE in row and closed is not None and closed.kept and f"{_SHARE}_low" not in found_bands:
        ends = widened(
            row[_SHARE],
            (min(closed.kept), max(closed.kept)),
            row[_SHARE] * scatter.get(_SHARE, 0.0),
        )
        found_bands |= held(_SHARE, row[_SHARE], ends)
    if found_bands.get(f"{_SHARE}_high") is not None:
        found_bands[f"{_SHARE}_high"] = min(1.0, found_bands[f"{_SHARE}_high"])
    made = row["output_tokens_per_s"]
    if "output_tokens_per_s_low" not in found_bands:
        spread = made * scatter.get("output_tokens_per_s", 0.0)
        found_bands |= held("output_tokens_per_s", made, (max(0.0, made - spread), made + spread))
    per_gpu = row["output_tokens_per_s_per_gpu"]
    inverse = tuple(
        0.0 if end is None else per_gpu * cluster_size.size / end for end in (high, low)
    )
    return found_bands | held("output_tokens_per_s_per_gpu", per_gpu, inverse)  # type: ignore[arg-type]


def scaled(value: float, factors: tuple[float, float]) -> tuple[float, float]:
    """Both ends of a band."""
    return value * factors[0], value * factors[1]


def _finite(band: tuple[float, float]) -> Band:
    return band[0] if math.isfinite(band[0]) else None, band[1] if math.isfinite(band[1]) else None


def _scatter(choices: ComparedChoices) -> dict[str, float]:
    """How other samples scatter the first choice's figures, as shares of them, either way in four
    cases of five.
    """
    base: dict[str, float] = next(
        (row["measured"] for row in choices.slowed if row["slower"] == 1.0), {}
    )
    return {
        name: Z_80
        * float(np.std([value, *(row["measured"][name] for row in choices.redrawn)]))
        / value
        for name, value in base.items()
        if value > 0
    }


def costs_band(costs: Floats | None) -> Band:
    """Of draws; without ends where there are none."""
    return (None, None) if costs is None else band_of(costs)


def ratio_band(costs: Floats | None, others: Floats | None) -> Band:
    """Of the ratio of two costs in the same draws."""
    return (None, None) if costs is None or others is None else band_of(over(costs, others))


@dataclass(frozen=True)
class ChangedTrials(Trials):
    """Trials that are under a change where nothing else is asked for."""

    change: Change = AS_ASKED

    def trial(
        self, candidate: Candidate, cluster_size: ClusterSize, change: Change = AS_ASKED
    ) -> Outcome:
        """As of other trials; likewise below."""
        return super().trial(candidate, cluster_size, self.change if change == AS_ASKED else change)

    def explorer(self, candidate: Candidate, change: Change) -> Explorer:
        """For the search of a size."""
        return super().explorer(candidate, self.change if change == AS_ASKED else change)


def losses(
    trials: Trials, candidate: Candidate, cluster_size: ClusterSize, table: Table
) -> list[dict[str, Any]]:
    """What :func:`~simulator.planner.losses.with_losses` says, with bands: of the calibration's
    ends, and of other samples.
    """
    changes = [Change(slower=edge) for edge in _tabulated(table)] + [
        Change(draw=draw) for draw in DRAWS
    ]
    asked = with_losses(trials, candidate, cluster_size)
    others = [
        with_losses(
            ChangedTrials(trials.text, trials.folder, trials.place, change), candidate, cluster_size
        )
        for change in changes
    ]
    ends, samples = others[: -len(DRAWS)], others[-len(DRAWS) :]
    for n, row in enumerate(asked):
        for name in ("goodput_per_s", "attainment"):
            value = row[name]
            if value is None:
                continue
            edges = [value, *(other[n][name] for other in ends if other[n][name] is not None)]
            drawn = [value, *(other[n][name] for other in samples if other[n][name] is not None)]
            band = widened(value, (min(edges), max(edges)), Z_80 * float(np.std(drawn)))
            row |= held(
                name, value, (band[0], min(1.0, band[1]) if name == "attainment" else band[1])
            )
        row["note"] = stretch_text(trials, candidate)
    return asked


def _tabulated(table: Table) -> Iterable[float]:
    """The factors nearest to the band's ends of those that were simulated already."""
    return dict.fromkeys(
        min(table.slower, key=lambda factor, edge=edge: abs(factor - edge))  # type: ignore[misc]
        for edge in table.edges
    )


def stretch_text(trials: Trials, candidate: Candidate) -> str:
    """Of which requests a row is; empty where it is of all."""
    traffic = trials.explorer(candidate, Change()).traffic
    whole = trials.explorer(candidate, Change(most=2**62)).traffic
    return (
        ""
        if is_whole(whole)
        else (
            f"On the busiest stretch of the traffic, {traffic.num_requests:,} "
            f"of {whole.num_requests:,} requests."
        )
    )
