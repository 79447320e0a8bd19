"""Verdict of a run in sentences: which deployment serves the traffic better, by how
much, and why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.columns import Picked
from simulator.base.findings import Finding
from simulator.cost.engine_time import BEYOND_S, MEASURED_SEQUENCES
from simulator.results.folder import Results
from simulator.results.phases import STEP_PHASES
from simulator.results.results_folder import ResultsFolder, Verdict, make_verdict
from simulator.results.run_bands_text import (
    chance_of,
    find_bands,
    find_chance,
    find_undetermined,
    is_sure,
)
from simulator.results.run_sentences import find_insides, tell_gpus
from simulator.results.tables import TURNED_AWAY

_ATTAINMENT_STEP = 0.005
"""Difference between shares of requests in time below which they count as equal."""
_LOAD = ("load_imbalance", "uniform_imbalance", "dropped_share")
_EVEN = 1.005
"""Ratio of the busiest rank's load to the mean rank's below which it counts as even."""
_NO_SKEW = 0.02
"""Relative difference to the imbalance of uniform routing below which a run has no skew: the run's
own draws scatter by as much."""
_LATENCIES = ("tpot_p50_s", "ttft_p50_s")
_TOLD = ("ttft_p50_s", "tpot_p50_s", "output_tokens_per_s", "slo_attainment")
"""Figures that headlines name."""


class Judgement(NamedTuple):
    """Judgement of a run."""

    headline: Finding
    reasons: list[Finding]
    winner: str | None
    """Better deployment; ``None`` for a tie, a trade-off or a single one."""
    chance: float | None
    """Probability that it is better; ``None`` where none was drawn."""
    ranking: list[str]
    """Deployments, the best first."""


def verdict(results: Results) -> Verdict:
    """Judge a run in sentences."""
    found = find_verdict(results)
    told = make_verdict([found.headline, *found.reasons])
    told["winner"], told["ranking"] = found.winner, found.ranking
    told["chance"] = None if found.winner is None else found.chance
    return told


def find_verdict(results: Results) -> Judgement:
    """Judge a run: which deployment serves the traffic better, by how much, and why."""
    rows = {str(row["deployment"]): row for _, row in results.summary.iterrows()}
    short = short_names(results)
    steps = (_describe_steps(results, name, row, short[name]) for name, row in rows.items())
    insides = [*find_insides(results, rows, short), *steps, *_find_notes(results, short)]
    if len(rows) == 1:
        headline, *others = _describe_single(results, rows, short)
        reasons = [*others, *find_bands(results, short, None), *insides]
        return Judgement(headline, reasons, None, None, list(rows))
    ranked = sorted(rows, key=lambda name: _order(rows[name]))
    best, second = ranked[:2]
    if abs(
        _share_attained(rows[best]) - _share_attained(rows[second])
    ) < _ATTAINMENT_STEP and _latency(rows[second]) < _latency(rows[best]):
        best, second = second, best  # the shares lie on either side of a step's edge
    has_targets = not np.isnan(float(rows[best]["slo_attainment"]))
    gap = abs(_share_attained(rows[best]) - _share_attained(rows[second]))
    differs = gap >= _ATTAINMENT_STEP
    chance = None  # of losses no error is known
    if has_targets or not differs:
        chance = chance_of(results, best, second, has_targets and differs)
    winner = best if differs else _find_quicker(rows, best, second)
    told, doubts, named = results.run["deployments"], [], winner
    if chance is not None and winner is not None and _draws_hits(told[best], told[second]):
        doubts = [Finding("verdict.chance_unknown", name=short[best])]
        named = winner if is_sure(chance) else None
        chance = None
    pair = _Pair(results, rows, short, best, second, named, chance)
    headline, *others = pair.compare(ranked[2:])
    why = explain(results.frame("token_time"), best, second, short)
    bands = find_bands(results, short, best if chance is not None else None)
    reasons = [*doubts, *others, *why, *bands, *insides]
    return Judgement(headline, reasons, winner, chance, [best, second, *ranked[2:]])


def _describe_single(
    results: Results, rows: dict[str, pd.Series], short: dict[str, str]
) -> Iterator[Finding]:
    """Describe the service of the only deployment, first in one sentence."""
    ((name, row),) = rows.items()
    facts = {
        "ttft_s": float(row["ttft_p50_s"]),
        "tpot_s": float(row["tpot_p50_s"]),
        "output_tokens_per_s": float(row["output_tokens_per_s"]),
    }
    attained = float(row["slo_attainment"])
    gpus = tell_gpus(row)
    yield Finding("verdict.single", name=short[name], gpus=gpus, attained=attained, **facts)
    if not np.isnan(attained):
        yield Finding("verdict.single_served", **facts)
    yield from find_undetermined(results, short, [name], _TOLD)


def _draws_hits(*pair: Mapping[str, object]) -> bool:
    """Whether two deployments reach offloaded experts differently, and which experts tokens choose
    was drawn instead of recorded: bands know nothing of how real tokens repeat themselves.
    """
    drawn = [str(one["routing"]).split()[0] for one in pair if one.get("offload")]
    return pair[0].get("offload") != pair[1].get("offload") and any(
        kind != "replay" and "." not in kind for kind in drawn
    )


def with_verdict(results: Results) -> Results:
    """Judge results again, after runs were merged."""
    return replace(results, run={**results.run, "verdict": verdict(results)})


def compare_hardware(results: Results) -> dict[str, str]:
    """Tell the GPUs of each deployment, by its short name; empty where all have the same."""
    short = short_names(results)
    rows = {str(row["deployment"]): row for _, row in results.summary.iterrows()}
    gpus = {short[name]: tell_gpus(row) for name, row in rows.items()}
    kinds = {short[name]: results.facts(name).get("accelerator") for name in rows}
    if len(set(kinds.values())) > 1:
        gpus = {name: f"{told} ({kinds[name]})" for name, told in gpus.items()}
    return gpus if len(set(gpus.values())) > 1 else {}


def short_names(results: ResultsFolder) -> dict[str, str]:
    """Shorten each deployment's name to the part before its first comma where that is unambiguous.

    A rumour keeps its whole name, by which the page marks it.
    """
    names = results.deployments
    heads = [name if results.facts(name).get("is_rumour") else name.split(",")[0] for name in names]
    return {
        name: head if heads.count(head) == 1 else name
        for name, head in zip(names, heads, strict=True)
    }


def _order(row: pd.Series) -> tuple[float, float]:
    """Sort key: share of requests in time, then latency."""
    return -round(_share_attained(row) / _ATTAINMENT_STEP), _latency(row)


def _share_attained(row: pd.Series) -> float:
    """Share of requests in time; without targets, share of those that are not lost."""
    attained = float(row["slo_attainment"])
    return _share_kept(row) if np.isnan(attained) else attained


def _share_kept(row: pd.Series) -> float:
    """Share of requests that are neither lost nor refused."""
    away = _count_away(row)
    return 1.0 - away / (away + float(row["num_requests"])) if away else 1.0


def _count_away(row: pd.Series) -> int:
    """Count the requests that are lost or refused."""
    return int(np.nansum([row[f"num_{kind}"] for kind in TURNED_AWAY]))


def _latency(row: pd.Series) -> float:
    """Geometric mean of the medians of TTFT and TPOT."""
    medians = [float(row[key]) for key in ("ttft_p50_s", "tpot_p50_s") if float(row[key]) > 0]
    return float(np.exp(np.mean(np.log(medians)))) if medians else 0.0


def _find_quicker(rows: dict[str, pd.Series], best: str, second: str) -> str | None:
    """Find which deployment has the lower latencies; ``None`` where they are equal or it is a
    trade-off.
    """
    ratios = [_ratio(rows[second], rows[best], f"{name}_p50_s") for name in ("ttft", "tpot")]
    return best if max(ratios) >= SAME and min(ratios) >= 1 / SAME else None


class _Difference(NamedTuple):
    """Difference between two deployments."""

    finding: Finding
    better: str
    """The better deployment."""
    chance: float | None
    """Probability that it is better; ``None`` where none was drawn."""
    is_cost: bool = False

    @property
    def is_sure(self) -> bool:
        return is_sure(self.chance)


class _Pair(NamedTuple):
    """Two deployments to compare."""

    results: Results
    rows: dict[str, pd.Series]
    short: dict[str, str]
    """Names of deployments in sentences."""
    best: str
    second: str
    winner: str | None
    """The better one; ``None`` for a tie or a trade-off."""
    chance: float | None
    """Probability that it is better; ``None`` where none was drawn."""

    @property
    def sure_winner(self) -> str | None:
        """The better one, where that is sure."""
        return self.winner if is_sure(self.chance) else None

    def compare(self, behind: Sequence[str]) -> Iterator[Finding]:
        """Compare them: the answer in one sentence, what is sure, then the rest with its
        probability.

        Args:
            behind: further deployments, the best first.
        """
        found = [*self._compare_shares(), *self._compare_latencies(), *self._compare_costs()]
        sure = [one for one in found if one.is_sure]
        first, second = (self.rows[name] for name in (self.best, self.second))
        attained = [float(row["slo_attainment"]) for row in (first, second)]
        is_alike = np.ptp(attained) < _ATTAINMENT_STEP  # nor undefined
        medians = {
            name: [float(row[f"{name}_p50_s"]) for row in (first, second)]
            for name in ("ttft", "tpot")
        }
        names = {"first": self.short[self.best], "second": self.short[self.second]}
        lead = self._choose_lead(found, sure)
        facts = [one.finding for one in sure]
        yield Finding("verdict.compared", lead=lead, sure=facts, chance=self.chance, **names)
        medians = {name: both for name, both in medians.items() if not np.isnan(both).all()}
        is_told = lead not in ("better", "likely")
        attained_by_both = min(attained) if is_alike else None
        if medians or attained_by_both is not None:
            yield Finding(
                "verdict.figures",
                sure=[] if is_told else facts,
                medians=medians,
                attained=attained_by_both,
                **names,
            )
        for one in found:
            if not one.is_sure:
                yield Finding("verdict.unsure", chance=one.chance, one=one.finding)
        yield from find_undetermined(self.results, self.short, (self.best, self.second), _TOLD)
        if behind:
            yield Finding("verdict.behind", behind=[self.short[name] for name in behind])

    def _choose_lead(self, found: list[_Difference], sure: list[_Difference]) -> str:
        """Choose what the comparison begins with, a row of the table."""
        if self.sure_winner is not None:
            return "better"
        if all(one.is_cost for one in found):
            return "alike"
        if self.winner is not None:
            return "likely"
        if not sure:
            return "unsure"
        is_mixed = len({one.better for one in sure if not one.is_cost}) > 1
        return "trade_off" if is_mixed else "differs"

    def _differ(
        self, what: str, first_is_better: bool, chance: str | None, **facts: Any
    ) -> _Difference:
        """Find a difference.

        Args:
            what: row of the table.
            chance: figure by which one is better with a probability.
        """
        pair = (self.best, self.second)
        who, other = pair if first_is_better else pair[::-1]
        named = "" if who == self.sure_winner else self.short[who]
        found = Finding(f"difference.{what}", who=named, other=self.short[other], **facts)
        drawn = None if chance is None else find_chance(self.results, who, other, chance)
        return _Difference(found, who, drawn, what in ("cost", "price"))

    def _compare_shares(self) -> Iterator[_Difference]:
        """Compare the shares of requests in time; without targets, those that were served."""
        first, second = (self.rows[name] for name in (self.best, self.second))
        shares = [float(row["slo_attainment"]) for row in (first, second)]
        if abs(shares[0] - shares[1]) >= _ATTAINMENT_STEP:
            facts = {"most": max(shares), "least": min(shares)}
            yield self._differ("attained", shares[0] > shares[1], "slo_attainment", **facts)
        kept = [_share_kept(row) for row in (first, second)]
        if np.isnan(shares[0]) and abs(kept[0] - kept[1]) >= _ATTAINMENT_STEP:
            better, worse = (first, second) if kept[0] > kept[1] else (second, first)
            few, many = _count_away(better), _count_away(worse)
            refuses = worse["num_refused"] > 0
            yield self._differ("away", kept[0] > kept[1], None, few=few, many=many, refuses=refuses)

    def _compare_latencies(self) -> Iterator[_Difference]:
        for key in _LATENCIES:
            ratio = _ratio(self.rows[self.second], self.rows[self.best], key)
            if max(ratio, 1 / ratio) >= SAME:
                yield self._differ(key, ratio > 1, key, ratio=max(ratio, 1 / ratio))

    def _compare_costs(self) -> Iterator[_Difference]:
        """Compare prices of a token; where arrivals decide how many tokens are served, costs differ
        by what the GPUs cost.
        """
        pair, is_open = (self.best, self.second), self.results.is_open
        key = "cost_per_million_output_tokens"
        costs = [float(self.rows[name][key]) for name in pair]
        if is_open:
            rates = (float(self.rows[name]["output_tokens_per_s"]) for name in pair)
            costs = [cost * rate for cost, rate in zip(costs, rates, strict=True)]
        currencies = {self.results.run["deployments"][name].get("currency") for name in pair}
        if len(currencies) == 1 and min(costs) > 0 and max(costs) >= SAME * min(costs):
            what, chance = ("price", None) if is_open else ("cost", key)
            ratio = max(costs) / min(costs)
            yield self._differ(what, costs[0] < costs[1], chance, ratio=ratio)


def _ratio(second: pd.Series, first: pd.Series, key: str) -> float:
    ratio = float(second[key]) / float(first[key])
    return 1.0 if np.isnan(ratio) else ratio


def _describe_steps(results: Results, name: str, row: pd.Series, short: str) -> Finding:
    """Describe the composition of a deployment's steps."""
    facts, steps = results.run["deployments"][name], results.steps[name]
    is_decode = (steps["prefill_tokens"] == 0) & (steps["decodes"] > 0)
    decodes = Picked(steps, is_decode.to_numpy())
    shares = sorted(((float(row[f"{phase}_share"]), phase) for phase in STEP_PHASES), reverse=True)
    held = decodes["decodes"].sum() / decodes["num_steps"].sum() if len(decodes) else None
    imbalance, uniform, dropped = (float(row[key]) for key in _LOAD)
    return Finding(
        "verdict.steps",
        name=short,
        is_moe=facts["is_moe"],
        active=facts["active_parameters"],
        total=facts["total_parameters"],
        sequences=held,
        tokens=float(row["tokens_per_decode"]),
        phases={phase: share for share, phase in shares[:3]},
        load=_choose_load(imbalance, uniform, dropped),
        imbalance=imbalance,
        uniform=uniform,
    )


def _choose_load(imbalance: float, uniform: float, dropped: float) -> str:
    """Choose what is said of the load imbalance of ranks, and of its part beyond chance."""
    if not imbalance > _EVEN:
        return "even"
    if dropped > 0:
        return "dropped"
    if imbalance - uniform < _NO_SKEW * uniform:
        return "chance"
    return "skew" if uniform <= _EVEN else "both"


def _find_notes(results: Results, short: dict[str, str]) -> Iterator[Finding]:
    """Find what else a reader must know."""
    facts = results.run["deployments"]
    if hardware := compare_hardware(results):
        yield Finding("verdict.other_hardware", gpus=hardware)
    lesser = [name for name, one in facts.items() if one.get("pruning") or one.get("reduction")]
    if lesser and len(facts) > 1:
        yield Finding("verdict.lesser_models", names=[short[name] for name in lesser])
    for name in results.deployments:
        steps = results.steps[name]
        most = int(steps["running"].max()) // facts[name]["num_batches"]
        if most > MEASURED_SEQUENCES and (steps["pool"] == "both").all():
            yield Finding(
                "verdict.extrapolated",
                name=short[name],
                sequences=most,
                measured=MEASURED_SEQUENCES,
                beyond_s=BEYOND_S,
            )
    for name in results.deployments:
        if facts[name]["is_rumour"]:
            yield Finding("verdict.rumour", model=facts[name]["model_title"], name=short[name])


# Reasons why one deployment's output tokens take less time than another's: terms that add up to
# the difference, over all steps of the run.


SAME = 1.02
"""Ratio of times below which they count as equal: closer than the fidelities agree among
themselves."""
_WORTH_SAYING = 0.05
"""Share of the longer time above which a term is named."""
_NUM_NAMED = 2
"""Number of terms that are named on either side."""
_MUCH = 0.2
"""Share of an output token's time above which steps that compute prompts are mentioned."""
_UNITS = ((1e-6, "us"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"))


class Terms(NamedTuple):
    """Difference in seconds and its terms, in whole last digits of one unit, so that the shown
    numbers add up.
    """

    unit: str
    digits: int
    total: float
    gained: dict[str, float]
    """Phases that the quicker deployment spends less on, the largest first."""
    lost: dict[str, float]
    """Phases that it spends more on, as positive numbers."""
    rest: float
    """Difference of all other phases."""

    def text(self, value: float) -> str:
        """Write a number of the difference with its unit."""
        return f"{value:,.{self.digits}f} {self.unit}"


def explain(
    token_time: pd.DataFrame, best: str, second: str, short: dict[str, str]
) -> Iterator[Finding]:
    """Explain why an output token of one deployment is quicker than one of the other; empty where
    either has none.

    Args:
        token_time: :data:`simulator.results.derived.token_time.COLUMNS`.
        best, second: the deployments, the better one first.
        short: name of each deployment in sentences.
    """
    spent = {name: phase_seconds(token_time, name) for name in (best, second)}
    total_s = {name: sum(parts.values()) for name, parts in spent.items()}
    if not all(total_s.values()):
        return
    quick, slow = sorted(total_s, key=lambda name: total_s[name])
    if total_s[slow] < SAME * total_s[quick]:
        yield Finding("why.alike", quick_s=total_s[quick], slow_s=total_s[slow])
    else:
        terms = split_difference(spent[quick], spent[slow])
        shown = round(total_s[quick] / _unit_s(terms.unit), terms.digits)
        yield Finding(
            "why.differs",
            quick=short[quick],
            slow=short[slow],
            is_best=quick == best,
            quick_shown=shown,
            **terms._asdict(),
        )
    yield from _find_prompts(token_time, (best, second), short)


def phase_seconds(token_time: pd.DataFrame, name: str) -> dict[str, float]:
    """Seconds of an output token by phase over all kinds of steps."""
    own = token_time[token_time["deployment"] == name]
    return {phase: float(own[f"{phase}_s"].sum()) for phase in STEP_PHASES}


def split_difference(quick: dict[str, float], slow: dict[str, float]) -> Terms:
    """Split ``sum(slow) - sum(quick)`` into terms: the two largest on either side, and the rest.

    >>> quick, slow = {"experts": 0.010, "wait": 0.004}, {"experts": 0.030, "wait": 0.001}
    >>> terms = split_difference(quick, slow)
    >>> terms.text(terms.total), terms.gained, terms.lost, terms.rest
    ('17.0 ms', {'experts': 20.0}, {'wait': 3.0}, 0.0)
    """
    longest_s = sum(slow.values())
    unit, digits = _scale(longest_s, longest_s - sum(quick.values()))
    scale = _unit_s(unit)

    def to_scale(time_s: float) -> float:
        return round(time_s / scale, digits)

    # Both totals are shown, so the difference is that of what is shown.
    total = to_scale(longest_s) - to_scale(sum(quick.values()))
    saved = sorted(((slow[phase] - quick[phase], phase) for phase in slow), reverse=True)
    named = [entry for entry in saved if abs(entry[0]) > _WORTH_SAYING * longest_s]
    gained = {phase: to_scale(saved_s) for saved_s, phase in named if saved_s > 0}
    lost = {phase: to_scale(-saved_s) for saved_s, phase in reversed(named) if saved_s < 0}
    gained, lost = (dict(list(side.items())[:_NUM_NAMED]) for side in (gained, lost))
    rest = round(total - sum(gained.values()) + sum(lost.values()), digits)
    return Terms(unit, digits, round(total, digits), gained, lost, rest + 0.0)


def _scale(longest_s: float, difference_s: float) -> tuple[str, int]:
    """Choose the unit in which a time reads best, and digits that show a difference to
    a hundredth.
    """
    unit_s, unit = next(
        (entry for entry in reversed(_UNITS) if longest_s >= 1.5 * entry[0]), _UNITS[0]
    )
    finest = difference_s / unit_s / 100
    return unit, min(3, max(0, math.ceil(-math.log10(finest)))) if finest > 0 else 3


def _unit_s(unit: str) -> float:
    return next(unit_s for unit_s, name in _UNITS if name == unit)


def _find_prompts(
    token_time: pd.DataFrame, names: tuple[str, ...], short: dict[str, str]
) -> Iterator[Finding]:
    """Find the share of an output token's time in steps that compute prompts, where it is large."""
    shares = {}
    for name in names:
        own = token_time[token_time["deployment"] == name].set_index("kind")["token_s"]
        shares[short[name]] = float(own.reindex(["mixed", "prefill"]).sum() / own.sum())
    if max(shares.values()) >= _MUCH:
        yield Finding("why.prompts", shares=shares)
