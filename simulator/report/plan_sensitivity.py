"""How sure a plan is: bands of its cost and latencies, chances, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from simulator.report.document import facts_list
from simulator.report.markup import Markup, join, tag
from simulator.report.plan_bands import Band, band, between
from simulator.report.plan_tables import listed
from simulator.results.formats import TIMES, number
from simulator.results.plan_text import hourly, percent, target_text, times, value_text


def confidence(answer: dict[str, Any]) -> Markup | None:
    """The band of the cost and of the latencies, and what they are made of; None where it was not
    worked out.
    """
    found = answer.get("confidence") or {}
    if not found:
        return None
    shown = {
        "Cost, 80 % of cases": _between(
            found.get("cost_low"), found.get("cost_high"), lambda v: hourly(answer, v)
        ),
        "Meets every target as it is": _share(found.get("meets_targets")),
        "Needs more than the limits allow": _share(found.get("fails") or None),
        "Headroom, 80 % of cases": _between(
            found.get("headroom_low"), found.get("headroom_high"), times
        ),
        "Costs no more than the second choice": _share(found.get("beats_second")),
        "Costs less than the second choice": _share(found.get("cheaper_than_second")),
        "The second choice": str(found.get("second") or ""),
        "MoE costs no more than dense": _share(found.get("moe_costs_no_more_than_dense")),
        "MoE is cheaper than dense": _share(found.get("moe_beats_dense")),
        "Cost of MoE over dense, 80 % of cases": _moe_over_dense(answer),
    }
    parts = [facts_list(shown)]
    if found.get("figures"):
        rows = [_figure(answer, name) for name in found["figures"]]
        parts.append(
            listed(["Figure", "Simulated", "80 % of cases"], rows, ["", "value", "value"], "Bands")
        )
    if found.get("sources"):
        rows = [
            [
                str(source.get("name")),
                _between(source.get("low"), source.get("high"), lambda v: f"{number(v)}{TIMES}"),
                str(source.get("text") or ""),
            ]
            for source in found["sources"]
        ]
        parts.append(
            listed(
                ["Source of doubt", "Factor", "What it is"],
                rows,
                ["", "value", "source"],
                "Sources",
            )
        )
    first, *others = parts
    return join([first, *(tag("div", part, class_="below") for part in others)])


def _figure(answer: dict[str, Any], name: str) -> list[str]:
    """A figure of the recommended deployment with its band: that of its row, where the row has
    one.
    """
    row, found = answer.get("recommended") or {}, answer["confidence"]["figures"][name]
    text = partial(value_text, name)
    own = band(row, name)
    value, cases = row.get(name), own
    if own is None or value is None:
        value, cases = (
            found["value"],
            band({"value_low": found["low"], "value_high": found["high"]}, "value"),
        )
    return [target_text(name), text(value), between(cases, text) or text(value)]


def _moe_over_dense(answer: dict[str, Any]) -> str:
    found = answer.get("confidence") or {}
    said = _between(
        found.get("cost_moe_over_dense_low"), found.get("cost_moe_over_dense_high"), times
    )
    return between(band(answer.get("moe_vs_dense") or {}, "cost_ratio"), times) or said


def _between(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    if low is None:
        return ""
    if high is None:
        return f"{text(low)} to no cluster within the limits"
    return between(Band(low, high), text) or text(low)


def _share(value: float | None) -> str:
    return "" if value is None else f"{percent(value)} probable"
