"""What the choice hangs on: the same question with more traffic, longer prompts, slower wires, more
skew or other prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from simulator.planner.conditions import Conditions, unchanged
from simulator.planner.confidence import Costs
from simulator.planner.draws import Floats, Table
from simulator.planner.explore import Finding
from simulator.planner.findings import best_of_each, text_of
from simulator.planner.row_bands import costs_band, held, ratio_band
from simulator.planner.screen import Option
from simulator.planner.search import Found
from simulator.planner.space import Space
from simulator.planner.whatif import AS_ASKED, Change, cost_of

_CUT = 0.7
"""Price of a GPU-hour that is 30 % lower."""
_MOST_OPTIONS = 6


class Priced(NamedTuple):
    """What was found, and what it costs per hour under the prices that are looked at."""

    finding: Finding
    cost: float
    table: Table | None = None
    """Of what it needs if steps take longer, under the change that it was found for."""


class WhatIf(NamedTuple):
    """One thing that may turn out differently."""

    name: str
    text: str
    change: Change


WHAT_IFS = (
    WhatIf("traffic", "twice the traffic", Change(Conditions(rate=2.0))),
    WhatIf("prompts", "prompts four times as long", Change(Conditions(prompts=4.0))),
    WhatIf("network", "a network half as fast", Change(Conditions(network=0.5))),
    WhatIf("skew", "twice the skew of experts", Change(Conditions(skew=2.0))),
)
"""Those that take simulation; prices take none."""


def options_of(found: Found) -> list[Option]:
    """What is explored again: the best of every model, and then the best of other kinds."""
    chosen = dict.fromkeys(finding.option for finding in best_of_each(found).values())
    seen = {_kind(option) for option in chosen}
    for finding in found.findings:
        if len(chosen) >= _MOST_OPTIONS:
            break
        if finding.sized is not None and _kind(finding.option) not in seen:
            chosen.setdefault(finding.option)
            seen.add(_kind(finding.option))
    return list(chosen)


def _kind(option: Option) -> tuple[int, int, bool]:
    return (option.design.model, option.design.machines, option.prefill is None)


def changes_of(found: Found, option: Option) -> list[Change]:
    """Circumstances under which an option is explored anew; a dense model has no skew."""
    is_dense = found.space.models[option.design.model].moe is None
    return [AS_ASKED, *(one.change for one in WHAT_IFS if not (is_dense and one.name == "skew"))]


def sensitivity(
    found: Found,
    results: Mapping[tuple[Option, Change], Finding],
    tables: Mapping[tuple[Option, Change], Table],
    costs: Costs,
    stretch: str = "",
) -> list[dict[str, Any]]:
    """A row for each change: what is best then, what it costs, and whether that is another choice
    than without the change.

    Bands are of the deployments that a row names, with the calibration off by as much under the
    change as without it.

    Args:
        results: by option and change, see :func:`options_of` and :func:`changes_of`; likewise
            ``tables``, where there are any.
        stretch: which requests they are of.
    """
    options = options_of(found)

    def under(change: Change) -> list[Priced]:
        findings = []
        for option in options:
            own = change if (option, change) in results else AS_ASKED
            finding = results[option, own]
            findings.append(
                Priced(finding, cost_of(found.space, finding), tables.get((option, own)))
            )
        return findings

    base = _cheapest(under(AS_ASKED))
    if base is None:
        return []
    rows = [
        _row(found, costs, one.name, one.text, under(one.change), base, _note(found, one, stretch))
        for one in WHAT_IFS
    ]
    rows.append(
        _priced(found, costs, "price", "GPUs 30 % cheaper", range(len(found.space.machines)))
    )
    if len(found.space.machines) > 1:
        for place, machines in enumerate(found.space.machines):
            if machines.price_per_gpu_hour > 0:
                cluster = machines.offer.cluster
                rows.append(
                    _priced(
                        found,
                        costs,
                        f"price of {cluster}",
                        f"GPUs of {cluster} 30 % cheaper",
                        [place],
                    )
                )
    return rows


def _priced(found: Found, costs: Costs, name: str, text: str, cheaper: Any) -> dict[str, Any]:
    """Other prices of machines, not of electricity: everything that was found is compared again."""
    known = [Priced(finding, cost_of(found.space, finding)) for finding in found.findings]
    changed = []
    for finding, cost, _ in known:
        size = finding.sized.size if finding.sized is not None else 0
        place = finding.option.design.machines
        saved = (
            (1 - _CUT) * size * found.space.machines[place].price_per_gpu_hour
            if place in cheaper
            else 0.0
        )
        changed.append(Priced(finding, cost - saved))
    base = _cheapest(known)
    if base is None:
        raise ValueError("nothing was found")
    return _row(found, costs, name, text, changed, base, "")


def _row(
    found: Found,
    costs: Costs,
    name: str,
    text: str,
    findings: list[Priced],
    base: Priced,
    note: str,
) -> dict[str, Any]:
    best = _cheapest(findings)
    moe, dense = (
        _cheapest([one for one in findings if found.space.kind(one.finding.option.design) == kind])
        for kind in ("MoE", "dense")
    )
    row: dict[str, Any] = {
        "name": name,
        "change": text,
        "cost_per_hour": None if best is None else best.cost,
        "base_cost_per_hour": base.cost,
        "cost_ratio": None if best is None else _ratio(best, base),
        "deployment": None if best is None else text_of(found, best.finding),
        "flips": best is None or _choice(best.finding) != _choice(base.finding),
        "best_moe": _brief(found, moe),
        "best_dense": _brief(found, dense),
        "cost_moe_over_dense": None if moe is None or dense is None else _ratio(moe, dense),
        "note": note
        if best is not None
        else f"no deployment that was tried meets the targets then. {note}".strip(),
    }
    mine, theirs = _drawn(found, costs, best), _drawn(found, costs, base)
    if best is not None and best.cost > 0:
        row |= held("cost_per_hour", best.cost, costs_band(mine))
    row |= held("cost_ratio", row["cost_ratio"], ratio_band(mine, theirs))
    ratio = ratio_band(_drawn(found, costs, moe), _drawn(found, costs, dense))
    return row | held("cost_moe_over_dense", row["cost_moe_over_dense"], ratio)


def _drawn(found: Found, costs: Costs, one: Priced | None) -> Floats | None:
    """``[n]`` draws of what it costs; of GPUs where machines cost nothing."""
    drawn = None if one is None else costs.of(one.finding, one.table)
    if one is None or drawn is None:
        return None
    full = cost_of(found.space, one.finding)
    return drawn * (one.cost / full if full > 0 else 1.0)


def _brief(found: Found, priced: Priced | None) -> dict[str, Any] | None:
    if priced is None or priced.finding.sized is None:
        return None
    return {
        "model": found.space.models[priced.finding.option.design.model].name,
        "deployment": text_of(found, priced.finding),
        "gpus": priced.finding.sized.size,
        "cost_per_hour": priced.cost,
    }


def _choice(finding: Finding) -> tuple[int, int]:
    return (finding.option.design.model, finding.option.design.machines)


def _cheapest(known: list[Priced]) -> Priced | None:
    """The first of the cheapest, of which the one that takes up fewest GPUs."""
    met = [one for one in known if one.finding.sized is not None]
    return min(met, key=lambda one: (one.cost, one.finding.num_gpus), default=None)


def _ratio(one: Priced, other: Priced) -> float | None:
    """Of costs; of GPUs where machines cost nothing."""
    if other.cost > 0:
        return one.cost / other.cost
    sizes = one.finding.sized, other.finding.sized
    return (
        sizes[0].size / sizes[1].size
        if one.cost == 0 and sizes[0] is not None and sizes[1] is not None
        else None
    )


def _note(found: Found, one: WhatIf, stretch: str) -> str:
    """What to know about a row."""
    parts = [stretch] if stretch else []
    if one.name == "prompts":
        for model in found.space.models:
            share = _cut_share(found, one.change.conditions.prompts, model.max_context_tokens)
            if share > 0:
                few = "fewer than 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
                parts.append(
                    f"{model.name}: {few} of prompts are cut, so that they fit its context "
                    f"of {model.max_context_tokens:,} tokens."
                )
    if one.name == "skew":
        parts += _skew_notes(found.space, one.change.conditions)
    return " ".join(parts)


def _cut_share(found: Found, factor: float, context: int | None) -> float:
    trace = found.traffic.trace
    return (
        0.0
        if context is None
        else float((trace.num_input * factor + trace.num_output > context).mean())
    )


def _skew_notes(space: Space, conditions: Conditions) -> list[str]:
    if all(model.moe is None for model in space.models):
        return ["No model routes tokens to experts."]
    kept = unchanged(conditions, space.question, space.folder)
    return [
        f"Not applicable to {name}, whose experts' popularity was recorded, not drawn."
        for name in kept
    ]
