"""The report page: one file that opens offline, with the verdict first and everything it rests on
below.
"""

from __future__ import annotations

from typing import Any

from simulator.report import style, tables
from simulator.report.cards import Cards, drawn_sections
from simulator.report.document import described, document, facts_list, in_sections
from simulator.report.figures import figures
from simulator.report.markup import Markup, join, tag
from simulator.results.folder import Results
from simulator.results.formats import KEY_METRICS, UNDEFINED, number, seconds
from simulator.results.metrics import METRICS


def render(results: Results) -> str:
    """The page as one HTML document."""
    cards = Cards()
    sections = [
        ("Key numbers", _key_numbers(results)),
        *drawn_sections(cards, figures(), results),
        ("Models and deployments", described(_MODELS, tables.deployments_table(results))),
        ("What was assumed", tables.assumed(results)),
        ("How this run was made", _provenance(results.run)),
        (
            "All metrics",
            described(_ALL_METRICS, tables.metrics_table(results, METRICS, with_definitions=True)),
        ),
    ]
    name = str(results.run.get("name") or "run")
    return document(name, in_sections(_hero(results, name), sections), cards.payload)


_MODELS = (
    "Parameters are counted from each model's configuration and set against "
    "what its authors publish."
)
_ALL_METRICS = (
    "The numbers of summary.csv, with what each one means; "
    "percentiles are over requests that finished."
)


def _hero(results: Results, name: str) -> Markup:
    verdict = results.run.get("verdict") or {}
    reasons = [
        tag("li", tables.marked(results, str(reason))) for reason in verdict.get("reasons") or []
    ]
    return tag(
        "header",
        tag("p", name, class_="eyebrow"),
        tag(
            "h1",
            tables.marked(
                results,
                str(verdict.get("headline") or "No verdict: the run says nothing to compare."),
            ),
        ),
        *([tag("ul", *reasons, class_="reasons")] if reasons else []),
        _setting(results.run),
        *_notice(results),
    )


def _setting(run: dict[str, Any]) -> Markup:
    """The workload and the targets, as a line of short facts."""
    workload, slo = run.get("workload") or {}, run.get("slo") or {}
    shown: list[tuple[str, str]] = [("Workload", str(workload.get("name") or UNDEFINED))]
    if workload.get("num_requests") is not None:
        over = (
            f" over {seconds(float(workload['duration_s']))}" if workload.get("duration_s") else ""
        )
        rate = f", {number(float(workload['rate_per_s']))}/s" if workload.get("rate_per_s") else ""
        shown.append(("Requests", f"{workload['num_requests']:,}{over}{rate}"))
    for side in ("input", "output"):
        if lengths := workload.get(side):
            p99 = f", p99 {number(float(lengths['p99']))}" if lengths.get("p99") is not None else ""
            shown.append(
                (f"{side.capitalize()} tokens", f"mean {number(float(lengths['mean']))}{p99}")
            )
    targets = [
        f"{key[:-2].upper()} ≤ {seconds(float(limit))}"
        for key, limit in slo.items()
        if limit is not None
    ]
    shown.append(("Targets", ", ".join(targets) or "none set"))
    notes = [tag("p", str(note), class_="note") for note in workload.get("notes") or []]
    return join([facts_list(dict(shown), "setting"), *notes])


def _notice(results: Results) -> list[Markup]:
    """A line that leads to the warnings: a verdict should not be read without them."""
    count = len(
        {
            w
            for name in results.deployments
            for w in style.facts(results, name).get("warnings") or []
        }
    )
    if not count:
        return []
    said = "1 warning" if count == 1 else f"{count} warnings"
    return [
        tag(
            "p",
            tag("a", f"{said} about what these numbers rest on", href="#what-was-assumed"),
            class_="notice",
        )
    ]


def _key_numbers(results: Results) -> Markup:
    return tables.metrics_table(results, KEY_METRICS, with_definitions=False)


def _provenance(run: dict[str, Any]) -> Markup:
    """How the run was made: what is needed to make it again."""
    rows = {
        "Command": run.get("command"),
        "Seed": run.get("seed"),
        "Fidelity": run.get("fidelity"),
        **tables.made_of(run),
        "Workload": (run.get("workload") or {}).get("provenance"),
    }
    return join([facts_list(rows), tables.scenario(run)])
