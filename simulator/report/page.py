"""The report page: one file that opens offline, with the verdict first and everything it rests on below."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from simulator.metrics import METRICS
from simulator.report import style, tables
from simulator.report.figures import Figure, figures, plots
from simulator.report.formats import KEY_METRICS, UNDEFINED, number, seconds
from simulator.report.markup import Markup, join, tag, text
from simulator.results import Results

_HERE = Path(__file__).parent
# Nothing may be fetched: the page must read the same on a plane, and say nothing to anyone.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def render(results: Results) -> str:
    """The page as one HTML document."""
    drawn = _Drawn(results)
    sections = [
        ("Key numbers", _key_numbers(results)),
        *drawn.sections(),
        ("Models and deployments", _described(_MODELS, tables.deployments_table(results))),
        ("What was assumed", _assumed(results)),
        ("How this run was made", tables.provenance(results)),
        ("All metrics", _described(_ALL_METRICS, tables.metrics_table(results, METRICS, with_definitions=True))),
    ]
    anchors = {title: re.sub(r"[^a-z]+", "-", title.lower()).strip("-") for title, _ in sections}
    contents = tag("nav", *(tag("a", title, href=f"#{anchors[title]}") for title, _ in sections), aria_label="Contents", tabindex=0)
    body = [tag("section", tag("h2", title), content, id=anchors[title]) for title, content in sections]
    name = str(results.run.get("name") or "run")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} · moesim"),
        tag("style", Markup((_HERE / "page.css").read_text(encoding="utf-8"))),
    ]
    scripts = [
        Markup(f'<script type="application/json" id="payload">{_json_in_html(drawn.payload)}</script>'),
        tag("script", Markup(get_plotlyjs())),
        tag("script", Markup((_HERE / "page.js").read_text(encoding="utf-8"))),
    ]
    main = tag("main", _hero(results, name), contents, *body)
    return f'<!doctype html>\n<html lang="en">{tag("head", *head)}{tag("body", main, *scripts)}</html>\n'


_MODELS = "Parameters are counted from each model's configuration and set against what its authors publish."
_ALL_METRICS = "The numbers of summary.csv, with what each one means; percentiles are over requests that finished."


def _described(definition: str, content: Markup) -> Markup:
    return join([tag("p", definition, class_="lead"), content])


def _hero(results: Results, name: str) -> Markup:
    verdict = results.run.get("verdict") or {}
    reasons = [tag("li", _marked(results, str(reason))) for reason in verdict.get("reasons") or []]
    return tag(
        "header",
        tag("p", name, class_="eyebrow"),
        tag("h1", _marked(results, str(verdict.get("headline") or "No verdict: the run says nothing to compare."))),
        *([tag("ul", *reasons, class_="reasons")] if reasons else []),
        _setting(results.run),
        *_notice(results),
    )


def _marked(results: Results, sentence: str) -> Markup:
    """A sentence with the rumour mark behind each deployment or model that is one."""
    rumoured = {
        str(word)
        for name in results.deployments
        if (facts := style.facts(results, name)).get("is_rumour")
        for word in (name, facts.get("model_title"))
        if word
    }
    if not rumoured:
        return text(sentence)
    # The longest name first, so that a name within a name is not marked instead.
    names = sorted(rumoured, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(re.escape(word) for word in names)})", sentence)
    return join([join([piece, " ", tables.rumour_mark()]) if piece in rumoured else piece for piece in pieces])


def _setting(run: dict[str, Any]) -> Markup:
    """The workload and the targets, as a line of short facts."""
    workload, slo = run.get("workload") or {}, run.get("slo") or {}
    shown: list[tuple[str, str]] = [("Workload", str(workload.get("name") or UNDEFINED))]
    if workload.get("num_requests") is not None:
        over = f" over {seconds(float(workload['duration_s']))}" if workload.get("duration_s") else ""
        rate = f", {number(float(workload['rate_per_s']))}/s" if workload.get("rate_per_s") else ""
        shown.append(("Requests", f"{workload['num_requests']:,}{over}{rate}"))
    for side in ("input", "output"):
        if lengths := workload.get(side):
            p99 = f", p99 {number(float(lengths['p99']))}" if lengths.get("p99") is not None else ""
            shown.append((f"{side.capitalize()} tokens", f"mean {number(float(lengths['mean']))}{p99}"))
    targets = [f"{key[:-2].upper()} ≤ {seconds(float(limit))}" for key, limit in slo.items() if limit is not None]
    shown.append(("Targets", ", ".join(targets) or "none set"))
    listed = [tag("div", tag("dt", key), tag("dd", value)) for key, value in shown]
    notes = [tag("p", str(note), class_="note") for note in workload.get("notes") or []]
    return join([tag("dl", *listed, class_="setting"), *notes])


def _notice(results: Results) -> list[Markup]:
    """A line that leads to the warnings: a verdict should not be read without them."""
    count = len({w for name in results.deployments for w in style.facts(results, name).get("warnings") or []})
    if not count:
        return []
    said = "1 warning" if count == 1 else f"{count} warnings"
    return [tag("p", tag("a", f"{said} about what these numbers rest on", href="#what-was-assumed"), class_="notice")]


def _key_numbers(results: Results) -> Markup:
    return tables.metrics_table(results, KEY_METRICS, with_definitions=False)


def _assumed(results: Results) -> Markup:
    said = [tables.warnings_list(results), tables.assumptions_table(results)]
    told = [part for part in said if part is not None]
    lead = "Every number that the run took from elsewhere, the least certain first."
    return _described(lead, join(told)) if told else tag("p", "The run states no assumption.", class_="lead")


class _Drawn:
    """The figures as cards, and what the page's script needs to draw them."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.payload: dict[str, Any] = {"templates": style.TEMPLATES, "plots": []}

    def sections(self) -> list[tuple[str, Markup]]:
        """Title and content of each section; a section stands where its first figure does.

        What this run has nothing to show for is named at the end, with the reason, so that no heading stands over nothing.
        """
        every = [(figure, plots(figure, self.results)) for figure in figures()]
        missing = [tag("p", tag("b", figure.title), f": {figure.absent}", class_="absent") for figure, found in every if not found]
        by_section: dict[str, list[tuple[Figure, dict[str, go.Figure]]]] = {}
        for figure, found in every:
            if found:
                by_section.setdefault(figure.section, []).append((figure, found))
        sections = [(title, self._cards(shown)) for title, shown in by_section.items()]
        return [*sections, *([("Not drawn for this run", join(missing))] if missing else [])]

    def _cards(self, shown: list[tuple[Figure, dict[str, go.Figure]]]) -> Markup:
        is_half = [figure.width == "half" and len(found) == 1 for figure, found in shown] + [False]
        cards, is_second = [], False
        for place, (figure, found) in enumerate(shown):
            # Two halves share a row; one without a neighbour takes the row, so that none is left half empty.
            spans_half = is_half[place] and (is_second or is_half[place + 1])
            cards.append(self._card(figure, found, spans_half))
            is_second = spans_half and not is_second
        return tag("div", *cards, class_="cards")

    def _card(self, figure: Figure, found: dict[str, go.Figure], spans_half: bool) -> Markup:
        width = "full" if len(found) == 1 else figure.width
        cells = []
        for heading, plot in found.items():
            height = int(plot.layout.height or 320)
            holder = tag("div", id=self._add(plot), class_="plot", style=f"height:{height}px", role="img", aria_label=figure.title)
            above = [tag("h4", Markup(heading))] if heading else []
            cells.append(tag("div", *above, holder, class_="cell"))
        return tag(
            "article",
            tag("h3", figure.title),
            tag("p", figure.definition, class_="definition"),
            _legend(list(found.values())),
            tag("div", *cells, class_=f"plots {width}"),
            class_="card half" if spans_half else "card",
        )

    def _add(self, plot: go.Figure) -> str:
        name = f"plot-{len(self.payload['plots'])}"
        drawn = json.loads(pio.to_json(plot, validate=False))
        drawn["layout"].pop("template", None)
        self.payload["plots"].append({"id": name, "data": drawn["data"], "layout": drawn["layout"]})
        return name


def _legend(found: list[go.Figure]) -> Markup:
    """The legend of a card: a button a name, which hides and shows it in all plots of the card."""
    keys: dict[str, str] = {}
    for plot in found:
        for trace in plot.data:
            if not trace.name or trace.showlegend is False:
                continue
            if trace.type == "scatter":
                keys.setdefault(trace.name, style.swatch(str(trace.line.color), trace.line.dash not in (None, "solid")))
            elif trace.type == "bar":
                keys.setdefault(trace.name, style.swatch(str(trace.marker.color), bool(trace.marker.pattern.shape)))
    buttons = [
        tag(
            "button",
            tag("span", class_="swatch", style=patch),
            html.unescape(style.short(name, 34)),
            type="button",
            title=f"{html.unescape(name)}: hide or show",
            data_name=name,
            aria_pressed="true",
        )
        for name, patch in keys.items()
    ]
    return tag("div", *buttons, class_="legend") if buttons else Markup("")


def _json_in_html(payload: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    written = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
