"""Verdict of a run in sentences: which deployment serves the traffic better, by how
much, and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.columns import Columns, Picked
from simulator.cost.engine_time import BEYOND_S, MEASURED_SEQUENCES
from simulator.results.folder import Results
from simulator.results.formats import count, parameters, percent, seconds_text
from simulator.results.phases import STEP_PHASES
from simulator.results.run_bands_text import (
    SURE,
    chance_of,
    find_chance,
    tell_bands,
    tell_chance,
    tell_undetermined,
)
from simulator.results.run_sentences import (
    tell_changes,
    tell_drops,
    tell_gpus,
    tell_queue,
    tell_rebalances,
    tell_recomputation,
    tell_refusals,
    tell_room_wait,
    tell_scaling,
)
from simulator.results.tables import TURNED_AWAY
from simulator.results.why import PHASE_WORDS, SAME, explain

_ATTAINMENT_STEP = 0.005
"""Difference between shares of requests in time below which they count as equal."""
_FULL = 0.9
"""Share of the KV cache above which there is little room left."""
_LOAD = ("load_imbalance", "uniform_imbalance", "dropped_share")
_EVEN = 1.005
"""Ratio of the busiest rank's load to the mean rank's below which it counts as even."""
_NO_SKEW = 0.02
"""Relative difference to the imbalance of uniform routing below which a run has no skew: the run's
own draws scatter by as much."""
_LATENCIES = {
    "tpot_p50_s": "the following tokens come {:.2f} times faster",
    "ttft_p50_s": "the first token comes {:.2f} times sooner",
}
"""Differences of latencies in words."""
_TOLD = ("ttft_p50_s", "tpot_p50_s", "output_tokens_per_s", "slo_attainment")
"""Figures that headlines name."""
_IN_TIME = 0.99
"""Share of requests in time above which targets count as met."""


def verdict(results: Results) -> dict[str, Any]:
    """Judge a run: ``{"headline", "reasons", "winner"}``; the winner is ``None`` for a tie, a
    trade-off or a single deployment.
    """
    rows = {str(row["deployment"]): row for _, row in results.summary.iterrows()}
    short = short_names(results)
    insides = [_describe_steps(results, name, rows[name], short[name]) for name in rows]
    queues = [text for name in rows if (text := tell_queue(results, name, rows[name], short[name]))]
    again = [
        text
        for name, row in rows.items()
        for text in (tell_room_wait(row, short[name]), tell_recomputation(row, short[name]))
        if text
    ]
    gone = [text for name in rows if (text := tell_refusals(rows[name], short[name]))]
    gone += [
        text
        for name, row in rows.items()
        for tell in (tell_changes, tell_scaling)
        if (text := tell(results, name, row, short[name]))
    ]
    told = results.run["deployments"]
    gone += [text for name in rows if (text := tell_rebalances(told[name], short[name]))]
    dropped = [text for name in rows if (text := tell_drops(rows[name], told[name], short[name]))]
    if len(rows) == 1:
        ((name, row),) = rows.items()
        headline = f"{short[name]} serves this traffic with {_numbers(row)}."
        headline += _doubt(results, short, [name])
        return {
            "headline": headline,
            "reasons": [
                *_bands(results, short, ""),
                *gone,
                *dropped,
                *queues,
                *again,
                *insides,
                *_notes(results, short),
            ],
            "winner": None,
        }
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
    better = ""
    if chance is not None and winner is not None and _draws_hits(told[best], told[second]):
        better = (
            f"how sure it is that {short[best]} is better, synthetic routing cannot tell: how "
            "often its caches find an expert is assumed (replay a recording to know)"
        )
    elif chance is not None and winner is not None:
        better = (
            f"{short[best]} is better with a probability of {tell_chance(chance)}, going by how "
            "far off the simulator was elsewhere"
        )
    is_sure = chance is None or chance >= SURE
    headline = _compare(results, rows, best, second, short, winner if is_sure else None)
    headline += _doubt(results, short, [best, second])
    if len(ranked) > 2:
        headline += f" Behind them: {', '.join(short[name] for name in ranked[2:])}."
    if not queues:
        queues = [_headroom(rows, short)]
    why = explain(results.token_time, best, second, short)
    return {
        "headline": headline,
        "reasons": [
            *_bands(results, short, better),
            *why,
            *gone,
            *dropped,
            *queues,
            *again,
            *insides,
            *_notes(results, short),
        ],
        "winner": winner,
    }


def _draws_hits(*pair: dict[str, Any]) -> bool:
    """Whether two deployments reach offloaded experts differently, and which experts tokens choose
    was drawn instead of recorded: bands know nothing of how real tokens repeat themselves.
    """
    drawn = [str(one["routing"]).split()[0] for one in pair if one.get("offload")]
    return pair[0].get("offload") != pair[1].get("offload") and any(
        kind != "replay" and "." not in kind for kind in drawn
    )


def _bands(results: Results, short: dict[str, str], better: str) -> list[str]:
    said = tell_bands(results, short, better)
    return [] if said is None else [said]


def _doubt(results: Results, short: dict[str, str], names: Sequence[str]) -> str:
    """Say which figures of a headline are not determined; empty where all are."""
    return "".join(f" {text}" for text in tell_undetermined(results, short, names, _TOLD))


def _headroom(rows: dict[str, pd.Series], short: dict[str, str]) -> str:
    """Describe the headroom where no requests wait; the targets decide whether there is room for
    more.
    """
    peaks = {short[name]: float(row["kv_used_max"]) for name, row in rows.items()}
    full = ", ".join(f"{percent(peak)} ({name})" for name, peak in peaks.items())
    keeps = all(float(row["slo_attainment"]) >= _IN_TIME for row in rows.values())
    room = ", so there is room for more traffic" if keeps and max(peaks.values()) < _FULL else ""
    return (
        "No queue builds up: hardly a request waits for a place, and at the peak the KV "
        f"caches are {full} full{room}."
    )


def with_verdict(results: Results) -> Results:
    """Judge results again, after runs were merged."""
    return replace(results, run={**results.run, "verdict": verdict(results)})


def short_names(results: Results) -> dict[str, str]:
    """Shorten each deployment's name to the part before its first comma where that is unambiguous.

    A rumour keeps its whole name, by which the page marks it.
    """
    names = results.deployments
    heads = [
        name if results.run["deployments"][name]["is_rumour"] else name.split(",")[0]
        for name in names
    ]
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

    text: str
    better: str
    """The better deployment, which may be named behind the text."""
    chance: float | None
    """Probability that it is better; ``None`` where none was drawn."""
    rest: str = ""
    """Rest of the text, behind that name."""
    is_cost: bool = False

    @property
    def is_sure(self) -> bool:
        return self.chance is None or self.chance >= SURE


def _compare(
    results: Results,
    rows: dict[str, pd.Series],
    best: str,
    second: str,
    short: dict[str, str],
    winner: str | None,
) -> str:
    """Compare two deployments: first what is sure, then the rest with its probability.

    Args:
        winner: the better one, as far as that is sure.
    """

    def tell(one: _Difference) -> str:
        who = "" if one.better == winner else f" with {short[one.better]}"
        return f"{one.text}{who}{one.rest}"

    found = list(_list_differences(results, rows, (best, second), short))
    sure = [one for one in found if one.is_sure]
    lead, names_both = "", not sure or all(one.is_cost for one in found)
    if winner is not None:
        lead = f"{short[winner]} serves this traffic better than {short[second]}"
    elif all(one.is_cost for one in found):
        lead = f"{short[best]} and {short[second]} serve this traffic equally well"
    elif not sure:
        lead = f"Between {short[best]} and {short[second]} no difference is sure"
    elif len({one.better for one in sure if not one.is_cost}) > 1:
        lead = "It is a trade-off"
    facts = "; ".join(map(tell, sure))
    told = ("; " if names_both else ": ").join(filter(None, (lead, facts)))
    numbers = _pairs(rows[best], rows[second], ("ttft", "tpot"))
    sides = "" if winner or names_both else f"{short[best]} against {short[second]}: "
    numbers = f" ({sides}{numbers})" if numbers else ""
    unsure = "".join(
        f" With a probability of {tell_chance(one.chance)}, {tell(one)}."
        for one in found
        if one.chance is not None and not one.is_sure
    )
    both = _tell_both(rows[best], rows[second])
    return f"{told[0].upper() if not lead else told[0]}{told[1:]}{numbers}.{both}{unsure}"


def _list_differences(
    results: Results, rows: dict[str, pd.Series], pair: tuple[str, str], short: dict[str, str]
) -> Iterator[_Difference]:
    """List the differences of two deployments that are large enough to be mentioned."""
    first, second = (rows[name] for name in pair)

    def order(is_first: bool) -> tuple[str, str]:
        return pair if is_first else (pair[1], pair[0])

    attained = [float(row["slo_attainment"]) for row in (first, second)]
    if abs(attained[0] - attained[1]) >= _ATTAINMENT_STEP:
        who, other = order(attained[0] > attained[1])
        chance = find_chance(results, who, other, "slo_attainment")
        text = f"{_share(max(attained))} of requests meet the targets"
        yield _Difference(
            text, who, chance, f", against {_share(min(attained))} with {short[other]}"
        )
    kept = [_share_kept(row) for row in (first, second)]
    if np.isnan(attained[0]) and abs(kept[0] - kept[1]) >= _ATTAINMENT_STEP:
        who, other = order(kept[0] > kept[1])
        few, many = (_count_away(rows[name]) for name in (who, other))
        how = "refused" if rows[other]["num_refused"] > 0 else "lost"
        text = (
            f"{count(few, 'request') if few else 'no request'} {'is' if few < 2 else 'are'} {how}"
        )
        yield _Difference(text, who, None, f", against {many:,} with {short[other]}")
    for key, text in _LATENCIES.items():
        ratio = _ratio(second, first, key)
        if max(ratio, 1 / ratio) >= SAME:
            who, other = order(ratio > 1)
            chance = find_chance(results, who, other, key)
            yield _Difference(text.format(max(ratio, 1 / ratio)), who, chance)
    # Where arrivals decide how many tokens are served, costs differ by what the GPUs cost.
    key, what = "cost_per_million_output_tokens", "a token costs"
    costs = [float(row[key]) for row in (first, second)]
    if results.is_open:
        what = "the GPUs cost"
        costs = [
            cost * float(rows[name]["output_tokens_per_s"])
            for cost, name in zip(costs, pair, strict=True)
        ]
    currencies = {results.run["deployments"][name].get("currency") for name in pair}
    if len(currencies) == 1 and min(costs) > 0 and max(costs) >= SAME * min(costs):
        who, other = order(costs[0] < costs[1])
        chance = None if results.is_open else find_chance(results, who, other, key)
        text = f"{what} {max(costs) / min(costs):.2f} times less"
        yield _Difference(text, who, chance, is_cost=True)


def _tell_both(first: pd.Series, second: pd.Series) -> str:
    """Say how far two deployments meet the targets, where they do so alike."""
    attained = [float(row["slo_attainment"]) for row in (first, second)]
    lowest = min(attained)
    if np.isnan(attained).any() or max(attained) - lowest >= _ATTAINMENT_STEP:
        return ""
    if lowest < _ATTAINMENT_STEP:
        return " Neither meets the targets, or hardly ever."
    least = "at least " if lowest < 1 else ""
    return f" Both meet the targets for {least}{_share(lowest)} of requests."


def _ratio(second: pd.Series, first: pd.Series, key: str) -> float:
    ratio = float(second[key]) / float(first[key])
    return 1.0 if np.isnan(ratio) else ratio


def _pairs(first: pd.Series, second: pd.Series, latencies: tuple[str, ...]) -> str:
    """Compare medians, without those that neither deployment has."""
    times = {name: [float(row[f"{name}_p50_s"]) for row in (first, second)] for name in latencies}
    return ", ".join(
        f"{name.upper()} p50 {' against '.join(map(seconds_text, pair))}"
        for name, pair in times.items()
        if not np.isnan(pair).all()
    )


def _numbers(row: pd.Series) -> str:
    attained = float(row["slo_attainment"])
    targets = (
        ""
        if np.isnan(attained)
        else f"; {_share(attained)} of requests meet{'s' if attained == 0 else ''} the targets"
    )
    return (
        f"TTFT p50 {seconds_text(float(row['ttft_p50_s']))}, TPOT "
        f"p50 {seconds_text(float(row['tpot_p50_s']))} "
        f"and {float(row['output_tokens_per_s']):,.0f} output tokens/s "
        f"on {tell_gpus(row)}{targets}"
    )


def _decodes(results: Results, name: str) -> Columns:
    steps = results.steps[name]
    return Picked(steps, ((steps["prefill_tokens"] == 0) & (steps["decodes"] > 0)).to_numpy())


def _describe_steps(results: Results, name: str, row: pd.Series, short: str) -> str:
    """Describe the composition of a deployment's steps."""
    facts = results.run["deployments"][name]
    decodes = _decodes(results, name)
    active, total = (parameters(facts[f"{name}_parameters"]) for name in ("active", "total"))
    size = (
        f"{active} of its {total} parameters" if facts["is_moe"] else f"all its {total} parameters"
    )
    step = ""
    if len(decodes):
        held = decodes["decodes"].sum() / decodes["num_steps"].sum()
        step = f" A decode step holds {held:.1f} sequences a replica on average"
        found = float(row["tokens_per_decode"])
        step += f" and finds {found:.2f} tokens of each." if found > 1 else "."
    shares = sorted(((float(row[f"{phase}_share"]), phase) for phase in STEP_PHASES), reverse=True)[
        :3
    ]
    spent = ", ".join(f"{PHASE_WORDS[phase]} {percent(share)}" for share, phase in shares)
    load = _load(*(float(row[key]) for key in _LOAD))
    return f"{short} uses {size} for each token.{step} Of its step time: {spent}.{load}"


def _load(imbalance: float, uniform: float, dropped: float) -> str:
    """Describe the load imbalance of ranks, and its part beyond chance."""
    if not imbalance > _EVEN:
        return ""
    said = f" Its busiest rank computes {imbalance:.2f} times the mean rank's tokens"
    if dropped > 0:
        return f"{said}, of those that are not dropped."
    chance = f"uniform routing of the same batches would come to {uniform:.2f} by chance"
    skew = imbalance - uniform
    if skew < _NO_SKEW * uniform:
        return f"{said}, which is no skew: {chance}."
    if uniform <= _EVEN:
        return f"{said}, which is the skew of its routing."
    return f"{said}: {chance}, and the skew of its routing adds {skew:.2f}."


def _notes(results: Results, short: dict[str, str]) -> list[str]:
    facts = results.run["deployments"]
    notes = []
    gpus = {short[str(row["deployment"])]: tell_gpus(row) for _, row in results.summary.iterrows()}
    if len(set(gpus.values())) > 1:
        notes.append(
            "Not the same hardware: "
            + ", ".join(f"{name} has {text}" for name, text in gpus.items())
            + "."
        )
    for name in results.deployments:
        steps = results.steps[name]
        most = int(steps["running"].max()) // facts[name]["num_batches"]
        if most > MEASURED_SEQUENCES and (steps["pool"] == "both").all():
            notes.append(
                f"Extrapolated: some {most:,} sequences in a batch of {short[name]}; engines were "
                f"measured with {MEASURED_SEQUENCES:,}, and their own time is taken to grow by at "
                f"most {BEYOND_S * 1e6:.0f} us with each one more."
            )
    notes += [
        (
            f"Rumour: the size and shape of {facts[name]['model_title']} ({short[name]}) "
            "are not published by its makers."
        )
        for name in results.deployments
        if facts[name]["is_rumour"]
    ]
    return notes


def _share(share: float) -> str:
    """Write a share of requests for people: never all or none unless it is."""
    if share == 1.0:
        return "100 %"
    if share == 0.0:
        return "none"
    return f"{min(max(share, 0.001), 0.999):.1%}".replace("%", " %")
