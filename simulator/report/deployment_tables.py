"""Rows of the tables that pages share: what is compared, what was deployed, what was assumed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from simulator.report import style
from simulator.report.style import Shown
from simulator.report.texts import minus
from simulator.results.folder import Results
from simulator.results.formats import (
    TIMES,
    better_way,
    count,
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
"""Kinds of numbers, the least certain first: that is what a reader should see first."""


class Name(NamedTuple):
    """A deployment as tables name it."""

    text: str
    swatch: str
    """CSS of its patch of colour."""
    is_rumour: bool


class Value(NamedTuple):
    """A number of a deployment."""

    raw: float
    shown: str
    is_best: bool
    band: str = ""
    """Ends of its band as a text; empty where it has none."""


class MetricRow(NamedTuple):
    """A metric of all deployments."""

    key: str
    label: str
    definition: str
    unit: str
    better: str
    """The way that is better; empty where neither is."""
    of: dict[str, Value]
    """Values by deployment."""


class Fact(NamedTuple):
    """A fact about a deployment; its texts are empty where nothing is known."""

    text: str = ""
    badge: str = ""
    is_rumour: bool = False
    note: str = ""


class Assumption(NamedTuple):
    """A number that is not the run's own."""

    what: str
    value: str
    kind: str
    source: str

    @property
    def certainty(self) -> int:
        """Place in :data:`KINDS`; below all where it is none of them."""
        return KINDS.index(self.kind) if self.kind in KINDS else -1


def name_deployments(shown: Shown) -> dict[str, Name]:
    """Names of the deployments in tables."""
    return {
        name: Name(name, swatch, bool(style.facts(shown, name).get("is_rumour")))
        for name, swatch in style.swatches(shown).items()
    }


def split_at_rumours(sentence: str, shown: Shown) -> list[tuple[str, bool]]:
    """Pieces of a sentence, and whether each is the name of a rumoured deployment or model."""
    rumoured = {
        str(word)
        for name in shown.deployments
        if (facts := style.facts(shown, name)).get("is_rumour")
        for word in (name, facts.get("model_title"))
        if word
    }
    # The longest name first, so that a name within a name is not marked instead.
    names = "|".join(map(re.escape, sorted(rumoured, key=len, reverse=True)))
    pieces = re.split(f"({names})", sentence) if names else [sentence]
    return [(piece, piece in rumoured) for piece in pieces]


def list_metrics(results: Results, names: Iterable[str]) -> list[MetricRow]:
    """Rows of metrics, the best values of each marked."""
    return [_compare(results, name) for name in names]


def _compare(results: Results, key: str) -> MetricRow:
    found = results.summary.reindex(columns=[key])[key].tolist()
    values = [math.nan if value is None else value for value in found]
    best = winners(key, values, is_open=results.is_open)
    shown = {}
    for place, (name, raw) in enumerate(zip(results.deployments, values, strict=True)):
        currency = str(style.facts(results, name).get("currency") or "")
        band = band_text(results, name, key, raw, currency)
        shown[name] = Value(raw, metric(key, raw, currency), place in best, band)
    way = better_way(key, is_open=results.is_open)
    better = f"{way} is better" if way else ""
    known = METRICS[key]
    return MetricRow(key, known.label, known.definition, heading_unit(key), better, shown)


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


def list_facts(
    shown: Shown, left_out: Collection[str] = (), with_published: bool = True
) -> dict[str, list[Fact]]:
    """A fact about each deployment by title; facts that none states are left out.

    Args:
        left_out: further facts to leave out, by their key in ``run.json``.
        with_published: set counted parameters against what a model's authors publish.
    """
    rows = {
        title: [_state(style.facts(shown, name), key, with_published) for name in shown.deployments]
        for title, key in _FACTS.items()
        if key not in left_out
    }
    return {title: facts for title, facts in rows.items() if any(fact.text for fact in facts)}


def _state(facts: dict[str, Any], key: str, with_published: bool) -> Fact:
    value = facts.get(key)
    if value is None or value == "":
        return Fact()
    if key == "model_title":
        kind = "mixture of experts" if facts.get("is_moe") else "dense"
        return Fact(str(value), badge=kind, is_rumour=bool(facts.get("is_rumour")))
    if key in ("total_parameters", "active_parameters"):
        note = (
            _compare_with_published(float(value), _published_count(facts, key))
            if with_published
            else ""
        )
        return Fact(parameters(float(value)), note=note)
    return Fact(_FACT_TEXTS.get(key, lambda _: str(value))(facts))


def _published_count(facts: dict[str, Any], key: str) -> float | None:
    """The count that a model's authors publish; all parameters of a dense model are active."""
    if key == "active_parameters" and (facts.get("published_active") or facts.get("is_moe")):
        return facts.get("published_active")
    return facts.get("published_total")


def _compare_with_published(counted: float, published: float | None) -> str:
    if not published:
        return "none published"
    percent = 100 * (counted / published - 1)
    difference = "equal" if abs(percent) < 0.05 else minus(f"{percent:+.1f} %")
    return f"published {parameters(published)}, {difference}"


def _tell_accelerators(facts: dict[str, Any]) -> str:
    replicas = count(int(facts.get("replicas") or 1), "replica")
    return f"{facts['num_gpus']} {TIMES} {facts.get('accelerator', '')}, {replicas}"


def _tell_memory(facts: dict[str, Any]) -> str:
    weights, kv, reserve, total = (
        num_bytes(float(facts["memory"].get(f"{part}_bytes") or 0))
        for part in ("weights", "kv", "reserve", "total")
    )
    return f"weights {weights} + KV cache {kv} + reserve {reserve} of {total}"


_FACT_TEXTS = {
    "num_gpus": _tell_accelerators,
    "kv_tokens": lambda facts: f"{number(float(facts['kv_tokens']))} tokens",
    "memory": _tell_memory,
}
"""Facts that take more than their own text."""


def list_assumptions(
    shown: Shown, kinds: Collection[str] = KINDS
) -> list[tuple[Assumption, list[str]]]:
    """Numbers that are not the run's own with the deployments that share them, the least certain
    first.

    Args:
        kinds: those to list; what is of none of :data:`KINDS` counts as the least certain.
    """
    users: dict[Assumption, list[str]] = {}
    for name in shown.deployments:
        for row in style.facts(shown, name).get("assumptions") or []:
            stated = Assumption(*(str(row[key]) for key in Assumption._fields))
            if KINDS[max(stated.certainty, 0)] in kinds:
                users.setdefault(stated, []).append(name)
    return sorted(users.items(), key=lambda item: item[0].certainty)


def list_warnings(shown: Shown) -> dict[str, list[str]]:
    """Warnings with the deployments that share them."""
    users: dict[str, list[str]] = {}
    for name in shown.deployments:
        for warning in style.facts(shown, name).get("warnings") or []:
            users.setdefault(str(warning), []).append(name)
    return users


def describe_making(run: Mapping[str, Any]) -> dict[str, Any]:
    """Facts on when a run was made, how long it took, and of which versions."""
    took_s, versions = run.get("wall_s"), run.get("versions") or {}
    return {
        "Started": run.get("started"),
        "Took": None if took_s is None else f"{number(float(took_s))} s of wall time",
        "Source revision": run.get("revision"),
        "Versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
    }


def describe_deployments(shown: Shown, **options: Any) -> dict[str, Any]:
    """Variables of templates that name deployments and say what they are and rest on.

    Args:
        options: of :func:`list_facts`.
    """
    return {
        "names": name_deployments(shown),
        "facts": list_facts(shown, **options),
        "warnings": list_warnings(shown),
        "assumptions": list_assumptions(shown),
    }
