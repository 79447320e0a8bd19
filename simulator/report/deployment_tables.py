"""Rows of the tables that pages share: what is compared, what was deployed, what was assumed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from simulator.base.formats import number
from simulator.report import style
from simulator.results.folder import Results
from simulator.results.metrics import metric, winners
from simulator.results.results_folder import ResultsFolder
from simulator.results.run_bands_text import band_text, note_on

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
    note: str = ""
    """Note on its band; empty where it has none."""


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


def name_deployments(shown: ResultsFolder) -> dict[str, Name]:
    """Names of the deployments in tables."""
    return {
        name: Name(name, swatch, bool(shown.facts(name).get("is_rumour")))
        for name, swatch in style.swatches(shown).items()
    }


def split_at_rumours(sentence: str, shown: ResultsFolder) -> list[tuple[str, bool]]:
    """Pieces of a sentence, and whether each is the name of a rumoured deployment or model."""
    rumoured = {
        str(word)
        for name in shown.deployments
        if (facts := shown.facts(name)).get("is_rumour")
        for word in (name, facts.get("model_title"))
        if word
    }
    # The longest name first, so that a name within a name is not marked instead.
    names = "|".join(map(re.escape, sorted(rumoured, key=len, reverse=True)))
    pieces = re.split(f"({names})", sentence) if names else [sentence]
    return [(piece, piece in rumoured) for piece in pieces]


def list_metrics(results: Results, names: Iterable[str]) -> dict[str, dict[str, Value]]:
    """Values of metrics by deployment, the best of each metric marked."""
    return {name: _compare(results, name) for name in names}


def _compare(results: Results, key: str) -> dict[str, Value]:
    found = results.summary.reindex(columns=[key])[key].tolist()
    values = [math.nan if value is None else value for value in found]
    best = winners(key, values, is_open=results.is_open)
    shown = {}
    for place, (name, raw) in enumerate(zip(results.deployments, values, strict=True)):
        currency = str(results.facts(name).get("currency") or "")
        band = band_text(results, name, key, raw, currency)
        note = note_on(results, name, key)
        shown[name] = Value(raw, metric(key, raw, currency), place in best, band, note)
    return shown


def list_assumptions(
    shown: ResultsFolder, kinds: Collection[str] = KINDS
) -> list[tuple[Assumption, list[str]]]:
    """Numbers that are not the run's own with the deployments that share them, the least certain
    first.

    Args:
        kinds: those to list; what is of none of :data:`KINDS` counts as the least certain.
    """
    users: dict[Assumption, list[str]] = {}
    for name in shown.deployments:
        for row in shown.facts(name).get("assumptions") or []:
            stated = Assumption(*(str(row[key]) for key in Assumption._fields))
            if KINDS[max(stated.certainty, 0)] in kinds:
                users.setdefault(stated, []).append(name)
    return sorted(users.items(), key=lambda item: item[0].certainty)


def list_warnings(shown: ResultsFolder) -> dict[str, list[str]]:
    """Warnings with the deployments that share them."""
    users: dict[str, list[str]] = {}
    for name in shown.deployments:
        for warning in shown.facts(name).get("warnings") or []:
            users.setdefault(str(warning), []).append(name)
    return users


def describe_making(run: Mapping[str, Any]) -> dict[str, object]:
    """Facts on when a run was made, how long it took, and of which versions."""
    took_s, versions = run.get("wall_s"), run.get("versions") or {}
    return {
        "Started": run.get("started"),
        "Took": None if took_s is None else f"{number(float(took_s))} s of wall time",
        "Source revision": run.get("revision"),
        "Versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
    }


def list_pairings(shown: ResultsFolder) -> dict[str, list[str]]:
    """Deployments to show for each measure in which counterparts are equal: those of it, and those
    whose models are not made; ``all measures`` last. Empty where there are fewer than two measures.
    """
    made = {name: shown.facts(name).get("pairing") for name in shown.deployments}
    measures = dict.fromkeys(str(one["equal"]).replace("_", " ") for one in made.values() if one)
    if len(measures) < 2:
        return {}
    chosen = {
        measure: [
            name
            for name, one in made.items()
            if one is None or str(one["equal"]).replace("_", " ") == measure
        ]
        for measure in measures
    }
    return chosen | {"all measures": list(shown.deployments)}


def describe_deployments(shown: ResultsFolder) -> dict[str, object]:
    """Variables of templates that name deployments and say what they are and rest on."""
    return {
        "names": name_deployments(shown),
        "pairings": list_pairings(shown),
        "facts": [shown.facts(name) for name in shown.deployments],
        "warnings": list_warnings(shown),
        "assumptions": list_assumptions(shown),
    }
