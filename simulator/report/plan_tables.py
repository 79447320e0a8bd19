"""The tables of the page of ``moesim plan``, and the blocks that are copied from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from simulator.report import style, tables
from simulator.report.document import facts_list
from simulator.report.formats import UNDEFINED, number
from simulator.report.markup import Markup, join, tag
from simulator.report.plan_figures._models import colours
from simulator.report.plan_text import amount, hourly, kind_of, money, percent, target_short, target_text, times, value_text

MOST_RUNNERS_UP = 8
_MOST_REASONS = 40
_MOST_FLIPS = 4


def runners_up(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates behind the recommended one; of several that differ in the step's budget only, the best."""
    best = answer.get("recommended") or {}
    found: dict[str, dict[str, Any]] = {}
    for row in answer.get("candidates", []):
        if row["deployment"] != best.get("deployment"):
            found.setdefault(row["deployment"], row)
    return list(found.values())


def other_models(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The best of the models that are not recommended, the cheapest first."""
    best = answer.get("recommended") or {}
    rows = [row for row in answer.get("best_of_each_model", {}).values() if row["model"] != best.get("model")]
    return sorted(rows, key=lambda row: (row["cost_per_hour"], row["gpus"]))


def groups(answer: dict[str, Any], most: int = MOST_RUNNERS_UP) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What is shown of the candidates, under which heading; no deployment twice."""
    if answer.get("recommended"):
        yield "Recommended", [answer["recommended"]]
    others = other_models(answer)
    named = {row["deployment"] for row in others}
    behind = [row for row in runners_up(answer) if row["deployment"] not in named][:most]
    if behind:
        yield "Runners-up", behind
    if others:
        yield "Best of the other models", others


def costs_table(answer: dict[str, Any]) -> Markup:
    """The recommended deployment, the runners-up and the best of each other model: a row each."""
    currency, limits = answer.get("currency", "USD"), answer.get("targets", {})
    best = answer.get("recommended") or {}
    has_energy = any(row.get("cost_joules_per_output_token") for row in answer.get("candidates", []))
    head: list[str] = [
        "Deployment",
        _head("Cost per hour", currency),
        _head("Per 1M tokens out", currency),
        _head("Per 1M tokens", f"{currency}, with prompts"),
        "GPUs",
        *(_head(target_short(name), f"limit {value_text(name, limit)}") for name, limit in limits.items()),
        _head("Tightest", "of its limit"),
        *([_head("Energy", "J per token out")] if has_energy else []),
    ]
    rows = []
    colour = colours(answer)
    for title, found in groups(answer):
        rows.append(tag("tr", tag("th", title, scope="rowgroup"), tag("td", colspan=len(head) - 1), class_="group"))
        for row in found:
            cells = [
                _amount(row["cost_per_hour"], best.get("cost_per_hour"), answer if row is best else None),
                amount(row["cost_per_million_output_tokens"]),
                amount(row["cost_per_million_tokens"]),
                f"{row['gpus']:,}",
                *(value_text(name, row[name]) if row.get(name) is not None else UNDEFINED for name in limits),
                join([percent(row["worst_ratio"]), tag("span", target_short(row["worst_target"]), class_="hint")]),
                *([number(row["cost_joules_per_output_token"], keep_zeros=True)] if has_energy else []),
            ]
            patch = style.swatch(colour[row["model"]], kind_of(row) == "dense")
            name = tag(
                "span",
                tag("span", class_="swatch", style=patch),
                tag("span", row["deployment"], class_="name"),
                class_="deployment",
            )
            hint = tag("span", f"{kind_of(row)}, {row['token_budget']:,} tokens a step", class_="hint")
            rows.append(tag("tr", tag("th", name, hint, scope="row"), *(tag("td", cell) for cell in cells)))
    return tables.table(head, rows, "metrics numbers plan", "The candidates")


def _head(title: str, hint: str) -> Markup:
    return join([title, tag("span", hint, class_="hint")])


def _amount(value: float, best: float | None, answer: dict[str, Any] | None) -> Markup:
    """A cost, with how much more than the recommended deployment's it is, or of that one the band."""
    band = (answer or {}).get("confidence") or {}
    if value and band.get("cost_low") is not None and band.get("cost_high") is not None and band["cost_low"] != band["cost_high"]:
        return join([amount(value), tag("span", f"{amount(band['cost_low'])} to {amount(band['cost_high'])}", class_="hint")])
    if not best or abs(value / best - 1) < 0.005:
        return join([amount(value)])
    return join([amount(value), tag("span", f"+{percent(value / best - 1)}", class_="hint")])


def reasons_table(answer: dict[str, Any]) -> Markup | None:
    """Why candidates were ruled out, how many, and one of them; None where none was."""
    found = sorted((row for row in answer.get("ruled_out", []) if row["count"]), key=lambda row: -row["count"])
    if not found:
        return None
    rows = [
        tag(
            "tr",
            tag("td", row["reason"]),
            tag("td", f"{row['count']:,}", class_="value"),
            tag("td", row["example"], class_="source"),
        )
        for row in found[:_MOST_REASONS]
    ]
    return tables.table(["Why", "Candidates", "Such as"], rows, "assumptions", "Why candidates were ruled out")


def sensitivity_table(answer: dict[str, Any]) -> Markup | None:
    """Under each change the best deployment, and what to know about it; None where none was tried."""
    found, currency = answer.get("sensitivity") or [], answer.get("currency", "USD")
    if not found:
        return None
    has_notes = any(row.get("note") for row in found)
    rows = []
    for row in found:
        cost = money(row["cost_per_hour"], currency) if row.get("cost_per_hour") is not None else UNDEFINED
        cells = [str(row["change"]), cost, str(row.get("deployment") or "none within the limits")]
        cells += [str(row.get("note") or "")] if has_notes else []
        rows.append(_row(cells, ("", "value", "", "source")))
    head = ["Change", "Cost per hour", "Best deployment", *(["To know"] if has_notes else [])]
    return tables.table(head, rows, "assumptions", "The best deployment under each change")


def _row(cells: Sequence[str], classes: Sequence[str]) -> Markup:
    return tag("tr", *(tag("td", join([cell]), class_=class_ or False) for cell, class_ in zip(cells, classes, strict=False)))


def spare_table(answer: dict[str, Any]) -> Markup | None:
    """The cluster that keeps every target with so many nodes lost; None where it was not looked for."""
    found, currency = answer.get("spare_nodes") or [], answer.get("currency", "USD")
    if not found:
        return None
    rows = []
    for row in found:
        held = f"{_many(row['gpus'], 'GPU')} on {_many(row['nodes'], 'node')}" if row.get("gpus") else UNDEFINED
        cost = money(row["cost_per_hour"], currency) if row.get("cost_per_hour") is not None else UNDEFINED
        extra = row.get("extra_cost_per_hour")
        more = str(row.get("why") or "") if extra is None else money(extra, currency) if extra else UNDEFINED
        rows.append(_row([f"{row['nodes_lost']}", held, cost, more], ("value", "", "value", "value")))
    head = ["Nodes that may be lost", "Smallest cluster", "Cost per hour", "For the spare"]
    return tables.table(head, rows, "assumptions", "What it takes to keep every target with nodes lost")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def idle_list(answer: dict[str, Any]) -> Markup | None:
    """What is paid for and stands idle; None where nothing does."""
    found, currency = answer.get("idle") or {}, answer.get("currency", "USD")
    shown: dict[str, str] = {}
    if found.get("unused_gpus"):
        cost = money(found["unused_cost_per_hour"], currency)
        shown["GPUs that no replica uses"] = f"{found['unused_gpus']:,}, {cost} per hour"
    if found.get("held_back_nodes"):
        cost = money(found["held_back_cost_per_hour"], currency)
        shown["Nodes held back for failures"] = f"{found['held_back_nodes']:,}, {cost} per hour"
    for key, value in (found.get("spare_experts") or {}).items():
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            name = str(key).replace("_", " ").removesuffix(" per hour")
            said = money(value, currency) + " per hour" if "cost" in key and not isinstance(value, str) else _plain(value)
            shown[f"Spare experts: {name}"] = said
    return facts_list(shown) if shown else None


def flips_list(answer: dict[str, Any]) -> list[Markup]:
    """Where the winner changes, in sentences; most of them folded away."""
    said = [str(sentence) for sentence in (answer.get("crossover") or {}).get("flips") or []]
    if not said:
        return []
    first, rest = said[:_MOST_FLIPS], said[_MOST_FLIPS:]
    shown = tag("ul", *(tag("li", sentence) for sentence in first), class_="notes")
    folded = tag("ul", *(tag("li", sentence) for sentence in rest), class_="notes")
    more = [tag("details", tag("summary", f"{len(rest)} further readings of the map"), folded)] if rest else []
    return [tag("div", shown, *more, class_="flips")]


def handover(answer: dict[str, Any]) -> Markup | None:
    """The scenario files, and by deployment the commands that start its servers, in blocks that can be copied; None without either."""
    found = answer.get("handover") or {}
    blocks = [_scenario(scenario["file"], scenario["text"]) for scenario in found.get("scenarios", [])]
    by_deployment: dict[str, list[dict[str, Any]]] = {}
    for row in found.get("commands", []):
        by_deployment.setdefault(str(row["deployment"]), []).append(row)
    blocks += [_commands(name, rows) for name, rows in by_deployment.items()]
    return join(blocks) if blocks else None


def _scenario(file: str, text: str) -> Markup:
    said = tag("p", "On the planned traffic, to be simulated again in detail:", class_="definition")
    more = tag("details", tag("summary", "The file"), copyable(text))
    return tag("article", tag("h3", file), said, copyable(f"moesim run {file}"), more, class_="card handover")


def _commands(deployment: str, rows: list[dict[str, Any]]) -> Markup:
    parts: list[Markup] = []
    for row in rows:
        notes = [tag("li", str(note)) for note in row.get("not_expressed") or []]
        name = str(row["name"]).removeprefix(f"{deployment}: ")
        parts.append(tag("h4", f"{name[:1].upper()}{name[1:]}"))
        parts += [copyable(str(row["command"]))] if row["command"] else []
        parts += [tag("details", tag("summary", _not_expressed(len(notes))), tag("ul", *notes, class_="notes"))] if notes else []
    return tag("article", tag("h3", deployment), *parts, class_="card handover")


def _not_expressed(count: int) -> str:
    return "1 note on what the flags do not express" if count == 1 else f"{count} notes on what the flags do not express"


def copyable(text: str) -> Markup:
    """A block of text with a button that copies it."""
    return tag("div", tag("button", "Copy", type="button", class_="copy"), tag("pre", text, tabindex=0), class_="copyable")


def confidence(answer: dict[str, Any]) -> Markup | None:
    """The band of the cost and of the latencies, and what they are made of; None where it was not worked out."""
    found = answer.get("confidence") or {}
    if not found:
        return None
    shown = {
        "Cost, 80 % of cases": _between(found.get("cost_low"), found.get("cost_high"), lambda v: hourly(answer, v)),
        "Meets every target as it is": _share(found.get("meets_targets")),
        "Costs no more than the second choice": _share(found.get("beats_second")),
        "Headroom, 80 % of cases": _between(found.get("headroom_low"), found.get("headroom_high"), times),
        "MoE is cheaper than dense": _share(found.get("moe_beats_dense")),
    }
    parts = [facts_list(shown)]
    if found.get("figures"):
        rows = [
            _row(
                [target_text(name), value_text(name, band["value"]), value_text(name, band["low"]), value_text(name, band["high"])],
                ("", "value", "value", "value"),
            )
            for name, band in found["figures"].items()
        ]
        parts.append(tag("div", tables.table(["Figure", "Simulated", "Low", "High"], rows, "assumptions", "Bands"), class_="below"))
    if found.get("sources"):
        rows = [
            _row(
                [str(source.get("name")), _between(source.get("low"), source.get("high"), number), str(source.get("text") or "")],
                ("", "value", "source"),
            )
            for source in found["sources"]
        ]
        parts.append(
            tag("div", tables.table(["Source of doubt", "Factor", "What it is"], rows, "assumptions", "Sources"), class_="below")
        )
    return join(parts)


def _between(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    if low is None:
        return ""
    if high is None:
        return f"{text(low)} to no cluster within the limits"
    return text(low) if text(low) == text(high) else f"{text(low)} to {text(high)}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{percent(value)} probable"


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def sizes_list(answer: dict[str, Any]) -> dict[str, str]:
    """The next smaller and the next larger size, as facts."""
    sizes, currency = answer.get("sizes") or {}, answer.get("currency", "USD")
    shown = {}
    if smaller := sizes.get("smaller"):
        over = value_text(smaller["worst_target"], smaller["measured"])
        shown["Next size down"] = f"{smaller['gpus']} GPUs: {target_text(smaller['worst_target'])} would be {over}"
    if larger := sizes.get("larger"):
        cost = f", {money(larger['cost_per_hour'], currency)} per hour" if larger["cost_per_hour"] else ""
        shown["Next size up"] = f"{larger['gpus']} GPUs{cost}"
    return shown
