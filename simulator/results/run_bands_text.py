"""Sentences and notes on the uncertainty of a run's figures, and on the probability that one
deployment is better.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, TypedDict

from simulator.base.findings import Finding
from simulator.results.folder import Results
from simulator.results.metrics import METRICS, metric

SURE = 0.9
"""Probability from which on the headline states a difference as a fact."""
_SHOWN = {"ttft_p50_s": "TTFT p50", "tpot_p50_s": "TPOT p50"}
_JUDGED = {*_SHOWN, "slo_attainment"}
"""Figures that deployments are compared by."""
NEAR_SATURATION = "near saturation: this figure is not determined"
_NOTES = {
    "near_saturation": NEAR_SATURATION,
    "wide_error": "not determined: the error of its prices alone makes this much of it",
}
"""Notes on a figure by kind."""


class BandNote(NamedTuple):
    """Note on a figure whose band's ends differ by a factor of two or more; under ``notes`` of
    ``bands`` in ``run.json``.
    """

    kind: str
    """``near_saturation``: it differs so much between runs with steps at both ends of their prices'
    band, and by clearly more than the steps do; ``wide_error``: hardly by more than the prices do,
    or by the error of first tokens."""
    deployment: str
    metric: str
    """Name in ``summary.csv``."""
    low: float
    high: float
    """Ends of the band."""


class Bands(TypedDict, total=False):
    """``bands`` of ``run.json``, each part but the notes by deployment."""

    sources: dict[str, str]
    """Origin of the error of its prices."""
    requests: dict[str, list[int]]
    """First and last request that was served for its bands."""
    deployments: dict[str, dict[str, list[float]]]
    """10th and 90th percentile of each figure."""
    knees: dict[str, list[str]]
    """Figures with a knee between two runs."""
    notes: list[dict[str, Any]]
    """Fields of a :class:`BandNote` each."""
    better: dict[str, dict[str, dict[str, float]]]
    """Probability that a figure of it is better than that of another one."""


def list_notes(results: Results, kind: str) -> list[BandNote]:
    """List the notes of a kind."""
    found = [BandNote(**note) for note in _bands(results).get("notes", [])]
    return [note for note in found if note.kind == kind]


def note_on(results: Results, deployment: str, key: str) -> str:
    """Write the note on a figure; empty where there is none."""
    for kind, text in _NOTES.items():
        for note in list_notes(results, kind):
            if (note.deployment, note.metric) == (deployment, key):
                return text
    return ""


def find_undetermined(
    results: Results, short: dict[str, str], names: Collection[str], keys: Collection[str]
) -> Iterator[Finding]:
    """Find which figures of some deployments are not determined near saturation."""
    for name in names:
        currency = str(results.run["deployments"][name].get("currency") or "")
        figures = [
            (METRICS[note.metric].label, [metric(note.metric, end, currency) for end in note[3:]])
            for note in list_notes(results, "near_saturation")
            if note.deployment == name and note.metric in keys
        ]
        if figures:
            yield Finding("band.undetermined", name=short[name], figures=figures)


def _find_stretches(
    results: Results, short: dict[str, str]
) -> list[tuple[tuple[int, int], list[str]]]:
    """Find by which requests bands were made, where not by all, and of which deployments."""
    by_stretch: dict[tuple[int, int], list[str]] = {}
    for name, (first, last) in _bands(results).get("requests", {}).items():
        if last - first + 1 < results.run["workload"]["num_requests"]:
            by_stretch.setdefault((first, last), []).append(short[name])
    return list(by_stretch.items())


def is_sure(chance: float | None) -> bool:
    """Whether a probability is high enough to state a difference as a fact, or none was drawn."""
    return chance is None or chance >= SURE


def chance_of(results: Results, first: str, second: str, has_targets: bool) -> float | None:
    """Find the probability that a deployment serves the traffic better than another one: by the
    share of requests in time where targets are set, and by both latencies where none are or where
    the shares are equal; ``None`` where it was not drawn for both.
    """
    found = find_chance(results, first, second, "slo_attainment") if has_targets else None
    return find_chance(results, first, second, "latency") if found is None else found


def find_chance(results: Results, first: str, second: str, key: str) -> float | None:
    """Find the probability that a figure of a deployment is better than another one's; ``None``
    where it was not drawn for both.
    """
    return _bands(results).get("better", {}).get(first, {}).get(second, {}).get(key)


def find_bands(results: Results, short: dict[str, str], better: str | None) -> Iterator[Finding]:
    """Find the 80 % bands of the median latencies, where any were drawn.

    Args:
        better: deployment that is better with a probability; ``None`` where none is known.
    """
    names = [name for name in results.deployments if name in _bands(results).get("deployments", {})]
    values = results.summary.set_index("deployment")
    pieces = []
    for key, label in _SHOWN.items():
        edges = [edges_of(results, name, key, float(values[key][name])) for name in names]
        if edges and None not in edges:
            pieces.append((label, edges))
    if pieces:
        knees = _bands(results).get("knees", {}) if better else {}
        yield Finding(
            "band.latencies",
            names=[short[name] for name in names],
            pieces=pieces,
            takes_nearer=any(_JUDGED & {*knees.get(name, [])} for name in names),
            stretches=_find_stretches(results, short),
            requests=results.run.get("workload", {}).get("num_requests"),
            deployments=len(short),
        )


def band_text(results: Results, deployment: str, key: str, value: float, currency: str) -> str:
    """Write a figure's 80 % band for a table; empty where there is none, where arrivals decide the
    figure and no note says otherwise, or where both ends read the same as the figure.
    """
    if METRICS[key].is_given and results.is_open and not note_on(results, deployment, key):
        return ""
    edges = edges_of(results, deployment, key, value)
    if edges is None:
        return ""
    low, high = (metric(key, edge, currency) for edge in edges)
    return "" if low == high == metric(key, value, currency) else f"{low} to {high}"


def edges_of(
    results: Results, deployment: str, key: str, value: float
) -> tuple[float, float] | None:
    """Find the 10th and 90th percentile of a figure, widened to the figure itself where all
    measurements elsewhere lie on one side of its prediction; ``None`` where nothing was drawn.
    """
    edges = _bands(results).get("deployments", {}).get(deployment, {}).get(key)
    if edges is None or not all(map(math.isfinite, (*edges, value))):
        return None
    return min(edges[0], value), max(edges[1], value)


def _bands(results: Results) -> Bands:
    return results.run.get("bands") or Bands()
