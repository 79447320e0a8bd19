"""The page's tables: the metrics compared, the models and deployments, and what was assumed."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from simulator.report import style
from simulator.report.document import described
from simulator.report.markup import Markup, join, tag, text
from simulator.report.style import Shown
from simulator.results.folder import Results
from simulator.results.formats import (
    TIMES,
    UNDEFINED,
    better_way,
    heading_unit,
    metric,
    num_bytes,
    number,
    parameters,
    winners,
)
from simulator.results.metrics import METRICS
from simulator.results.run_bands_text import band_text

KINDS = ("assumed", "fitted", "interpolated", "published", "measured")
"""What a number can be, the least certain first: that is what a reader should see first."""


def rumour_mark() -> Markup:
    """What stands behind every name of a model that is not published."""
    return tag(
        "span",
        "rumoured",
        class_="badge rumour",
        title="This model is not published; its figures are rumours.",
    )


def name_with_mark(results: Shown, name: str, length: int = 48) -> Markup:
    """A deployment's name, cut to ``length``, with its colour and the mark of a rumoured model."""
    swatch = tag("span", class_="swatch", style=style.swatches(results)[name])
    shown = html.unescape(style.short(html.escape(name, quote=False), length))
    marks = [rumour_mark()] if style.facts(results, name).get("is_rumour") else []
    return tag(
        "span",
        swatch,
        tag("span", shown, class_="name"),
        *marks,
        class_="deployment",
        title=False if shown == name else name,
    )


def marked(results: Shown, sentence: str) -> Markup:
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
    return join(
        [join([piece, " ", rumour_mark()]) if piece in rumoured else piece for piece in pieces]
    )


def table(head: Sequence[str], rows: Iterable[Markup], class_: str, label: str) -> Markup:
    """A table in a box that scrolls sideways."""
    header = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    # Focusable, so that a keyboard can scroll it.
    return tag(
        "div",
        tag("table", header, tag("tbody", *rows), class_=class_),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=label,
    )


def metrics_table(results: Results, names: Iterable[str], with_definitions: bool) -> Markup:
    """A row a metric, a column a deployment, the best value of each row marked."""
    label = "Full metric table" if with_definitions else "Key metrics"
    head = ["Metric", *(name_with_mark(results, name) for name in results.deployments)]
    rows = [_metric_row(results, name, with_definitions) for name in names]
    return table(head, rows, "metrics", label)


def _metric_row(results: Results, name: str, with_definition: bool) -> Markup:
    described = METRICS[name]
    raw = (
        results.summary[name].tolist()
        if name in results.summary
        else [math.nan] * len(results.deployments)
    )
    values = [math.nan if value is None else value for value in raw]
    best = winners(name, values, is_open=results.is_open)
    heading = [tag("span", described.label, title=described.definition)]
    way = better_way(name, is_open=results.is_open)
    better = f"{way} is better" if way else ""
    if hint := ", ".join(filter(None, [heading_unit(name), "" if with_definition else better])):
        heading.append(tag("span", hint, class_="hint"))
    if with_definition:
        heading.append(tag("span", described.definition, class_="definition"))
    cells = []
    for place, (deployment, value) in enumerate(zip(results.deployments, values, strict=True)):
        currency = str(style.facts(results, deployment).get("currency") or "")
        shown = metric(name, float(value), currency)
        marked = (
            [tag("span", shown, class_="best", title="best of the row")]
            if place in best
            else [shown]
        )
        if band := band_text(results, deployment, name, float(value), currency):
            marked.append(tag("span", band, class_="hint band", title="80 % of cases"))
        cells.append(
            tag("td", *marked, data_metric=name, data_deployment=deployment, data_value=repr(value))
        )
    return tag("tr", tag("th", *heading, scope="row"), *cells)


def deployments_table(
    results: Shown, left_out: Collection[str] = (), with_published: bool = True
) -> Markup:
    """What was deployed: a row a fact, a column a deployment; facts that none states are left out.

    Args:
        left_out: further facts to leave out, by their key in ``run.json``.
        with_published: set counted parameters against what a model's authors publish.
    """
    rows = []
    for title, key in _FACTS.items():
        if key in left_out:
            continue
        cells = [
            _fact(style.facts(results, name), key, with_published) for name in results.deployments
        ]
        if any(cells):
            rows.append(
                tag(
                    "tr",
                    tag("th", title, scope="row"),
                    *(tag("td", cell or UNDEFINED) for cell in cells),
                )
            )
    head = [
        "Deployment",
        *(name_with_mark(results, name, length=200) for name in results.deployments),
    ]
    return table(head, rows, "facts", "Models and deployments")


_FACTS = {
    "Model": "model_title",
    "Parameters in all": "total_parameters",
    "Parameters active per token": "active_parameters",
    "Why this many": "model_note",
    "Cluster": "cluster_title",
    "Accelerators": "num_gpus",
    "Layout": "layout",
    "Weights in": "weight_dtype",
    "Pruning": "pruning",
    "KV cache in": "kv_dtype",
    "KV cache of a replica": "kv_tokens",
    "Memory of one accelerator": "memory",
    "Expert routing": "routing",
    "Routing comes from": "routing_source",
    "Expert overflow": "overflow",
    "Expert placement": "placement",
    "Dispatch": "dispatch",
    "Topology": "topology",
    "Scheduling": "scheduling",
    "Load balancing": "balancing",
    "Failures": "failures",
    "Speculation": "speculation",
}


def _fact(facts: dict[str, Any], key: str, with_published: bool) -> str:
    value = facts.get(key)
    if value is None or value == "":
        return ""
    if key == "model_title":
        kind = "mixture of experts" if facts.get("is_moe") else "dense"
        return join(
            [
                str(value),
                " ",
                tag("span", kind, class_="badge"),
                *([rumour_mark()] if facts.get("is_rumour") else []),
            ]
        )
    if key in ("total_parameters", "active_parameters") and not with_published:
        return parameters(float(value))
    if key == "total_parameters":
        return _against_published(float(value), facts.get("published_total"))
    if key == "active_parameters":
        published = facts.get("published_active") or (
            None if facts.get("is_moe") else facts.get("published_total")
        )
        return _against_published(float(value), published)
    if key == "num_gpus":
        replicas = int(facts.get("replicas") or 1)
        return (
            f"{value} {TIMES} {facts.get('accelerator', '')}, {replicas} "
            f"{'replica' if replicas == 1 else 'replicas'}"
        )
    if key == "kv_tokens":
        return f"{number(float(value))} tokens"
    if key == "memory":
        sizes = {
            part: num_bytes(float(value.get(f"{part}_bytes") or 0))
            for part in ("weights", "kv", "reserve", "total")
        }
        return "weights {weights} + KV cache {kv} + reserve {reserve} of {total}".format(**sizes)
    return str(value)


def _against_published(counted: float, published: float | None) -> Markup:
    if not published:
        return join([parameters(counted), " ", tag("span", "none published", class_="muted")])
    percent = 100 * (counted / published - 1)
    difference = (
        "equal" if abs(percent) < 0.05 else f"{percent:+.1f} %".replace("-", "\N{MINUS SIGN}")
    )
    return join(
        [
            parameters(counted),
            " ",
            tag("span", f"published {parameters(published)}, {difference}", class_="muted"),
        ]
    )


def assumptions_table(results: Shown, kinds: Collection[str] = KINDS) -> Markup | None:
    """Every number that is not the run's own, the least certain first; one row where deployments
    share it.

    Args:
        kinds: those that are shown; what is of none of :data:`KINDS` counts as the least certain.
    """
    users: dict[tuple[str, str, str, str], list[str]] = {}
    for name in results.deployments:
        for row in style.facts(results, name).get("assumptions") or []:
            key = (str(row["what"]), str(row["value"]), str(row["kind"]), str(row["source"]))
            if (key[2] if key[2] in KINDS else KINDS[0]) not in kinds:
                continue
            users.setdefault(key, []).append(name)
    if not users:
        return None
    certainty = {kind: place for place, kind in enumerate(KINDS)}
    rows = []
    for (what, value, kind, source), names in sorted(
        users.items(), key=lambda item: certainty.get(item[0][2], -1)
    ):
        badge = tag("span", kind, class_=f"badge {kind if kind in KINDS else 'assumed'}")
        used = (
            "all"
            if len(names) == len(results.deployments)
            else join([name_with_mark(results, n) for n in names])
        )
        cells = (
            tag("td", what),
            tag("td", value, class_="value", data_label="Value"),
            tag("td", badge, data_label="Kind"),
            tag("td", source, class_="source", data_label="Source"),
            tag("td", used, data_label="Deployments"),
        )
        rows.append(tag("tr", *cells))
    return table(
        ["What", "Value", "Kind", "Source", "Deployments"],
        rows,
        "assumptions stack",
        "What was assumed",
    )


def warnings_list(results: Shown) -> Markup | None:
    """The deployments' warnings, with the names of those that share one."""
    users: dict[str, list[str]] = {}
    for name in results.deployments:
        for warning in style.facts(results, name).get("warnings") or []:
            users.setdefault(str(warning), []).append(name)
    if not users:
        return None
    items = [
        tag(
            "li",
            warning,
            " ",
            tag("span", *(name_with_mark(results, n) for n in names), class_="whose"),
        )
        for warning, names in users.items()
    ]
    return tag("ul", *items, class_="warnings")


def assumed(results: Shown) -> Markup:
    """What the numbers rest on: the warnings, then the assumptions."""
    said = [
        part for part in (warnings_list(results), assumptions_table(results)) if part is not None
    ]
    lead = "Every number that the run took from elsewhere, the least certain first."
    return (
        described(lead, join(said))
        if said
        else tag("p", "The run states no assumption.", class_="lead")
    )


def made_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """When a run was made, how long it took, and of which versions, for
    :func:`~simulator.report.document.facts_list`.
    """
    return {
        "Started": run.get("started"),
        "Took": f"{number(float(run['wall_s']))} s of wall time"
        if run.get("wall_s") is not None
        else None,
        "Source revision": run.get("revision"),
        "Versions": ", ".join(
            f"{package} {version}" for package, version in (run.get("versions") or {}).items()
        ),
    }


def scenario(run: Mapping[str, Any]) -> Markup:
    """The scenario as it was resolved, folded away."""
    written = json.dumps(run.get("scenario") or {}, indent=2, ensure_ascii=False, default=str)
    return tag(
        "details",
        tag("summary", "The scenario as it was resolved"),
        tag("pre", written, tabindex=0),
    )
