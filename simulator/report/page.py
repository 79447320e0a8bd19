"""The page of ``moesim run``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from simulator.base.formats import TIMES, chance_text
from simulator.report import style
from simulator.report.deployment_tables import (
    describe_deployments,
    describe_making,
    list_metrics,
)
from simulator.report.front import Gauge, find_doubt, make_front, make_mark
from simulator.report.gallery import FigureCards, load_figures
from simulator.report.rendering import render_page
from simulator.results.answer.parts import Band
from simulator.results.explained import Explained
from simulator.results.explanation_text import (
    describe_limits,
    find_help,
    list_limits,
    read_explanation,
)
from simulator.results.folder import Results
from simulator.results.metrics import KEY_METRICS, METRICS, better_way, heading_unit, metric
from simulator.results.results_folder import Cell, TextTable, Verdict
from simulator.results.run_bands_text import band_text, edges_of
from simulator.results.verdict import short_names

FIGURES = load_figures("report.figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

_NO_VERDICT = "No verdict: the run says nothing to compare."


def render(results: Results) -> str:
    """The page as one HTML document."""
    cards, run = FigureCards(), results.run
    none: Verdict = {"headline": _NO_VERDICT, "reasons": []}
    name, gauges = str(run.get("name") or "run"), list(_draw_gauges(results))
    return render_page(
        "run.html",
        name,
        cards,
        front=make_front(
            name, run.get("verdict") or none, results, _answer(results, gauges), gauges
        ),
        workload=run.get("workload") or {},
        targets=run.get("slo") or {},
        metrics=METRICS,
        heading_unit=heading_unit,
        better_way=partial(better_way, is_open=results.is_open),
        key_metrics=list_metrics(results, KEY_METRICS),
        all_metrics=list_metrics(results, METRICS),
        listed=results.list_tables(),
        drawn=cards.draw(FIGURES, results),
        explained={name: _tell(one) for name, one in read_explanation(run).items()},
        run=run,
        making=describe_making(run),
        **describe_deployments(results),
    )


_MOST_MARKS = 4
"""Deployments on a first screen; the table below has all."""
_WITHIN = {
    "ttft": "First token, for 90 % of requests within",
    "tpot": "Each further token, for 90 % of requests within",
    "e2e": "Whole answer, for 90 % of requests within",
}
"""Titles of the latencies that may have a target."""


def _answer(results: Results, gauges: Sequence[Gauge]) -> dict[str, Cell | None]:
    """Chance of the verdict, machines, and what is known least."""
    verdict = results.run.get("verdict") or {}
    chance, facts = verdict.get("chance"), [results.facts(name) for name in _list_judged(results)]
    short, price = short_names(results), gauges[-1]
    machines = {f"{one['num_gpus']} {TIMES} {one.get('accelerator')}": None for one in facts}
    return {
        "How sure": None
        if chance is None
        else Cell(chance_text(chance), f"that {short[verdict['winner']]} is better"),
        "Machines": Cell(", ".join(machines), "for each" if len(facts) > len(machines) else ""),
        price.title: Cell(price.marks[0].text) if price.marks and price.is_flat else None,
        "Largest doubt": find_doubt(gauges),
    }


def _list_judged(results: Results) -> list[str]:
    """The best deployments, in the order of the page."""
    ranking = (results.run.get("verdict") or {}).get("ranking") or results.deployments
    best = ranking[:_MOST_MARKS]
    return [name for name in results.deployments if name in best]


def _draw_gauges(results: Results) -> Iterator[Gauge]:
    """Requests in time, latencies against their targets, and the price of tokens."""
    targets = results.run.get("slo") or {}
    if any(limit is not None for limit in targets.values()):
        yield _gauge(results, "slo_attainment", "Requests that meet every target", most=1.0)
    for what, title in _WITHIN.items():
        limit = targets.get(f"{what}_s")
        if limit is not None or (what != "e2e" and not any(targets.values())):
            yield _gauge(results, f"{what}_p90_s", title, limit)
    yield _gauge(results, "cost_per_million_output_tokens", "Price of a million tokens")


def _gauge(
    results: Results, key: str, title: str, limit: float | None = None, most: float = math.inf
) -> Gauge:
    short, swatches = short_names(results), style.swatches(results)
    values = results.summary.set_index("deployment")[key]
    marks = []
    for name in _list_judged(results):
        value, currency = float(values[name]), str(results.facts(name).get("currency") or "")
        if math.isfinite(value):
            has_band = band_text(results, name, key, value, currency)
            ends = edges_of(results, name, key, value) if has_band else None
            write = partial(metric, key, currency=currency)
            band = None if ends is None else Band(*ends)
            marks.append(make_mark(short[name], swatches[name], value, band, write))
    said = "" if limit is None else f"limit {metric(key, limit, '')}"
    return Gauge(title, marks, limit, said, most)


class _Told(NamedTuple):
    """Explanation of one deployment, as the page shows it."""

    tables: list[TextTable]
    """Limits of each pool; its pieces are a figure."""
    limits: list[str]
    """Sentences on them."""
    changes: list[str]
    """Sentences on what would help, the headline first."""


def _tell(explained: Explained) -> _Told:
    pools = explained.waterfalls
    limits = [list(list_limits(explained, pool)) for pool in pools]
    return _Told(
        [TextTable(rows[0][0], rows) for rows in limits],
        [str(one) for pool in pools for one in describe_limits(explained, pool)],
        list(map(str, find_help(explained.changes))),
    )
