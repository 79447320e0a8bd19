"""A sweep: its folder, its table, sentences on it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from simulator.base.findings import Finding
from simulator.results.metrics import METRICS, metric
from simulator.results.results_folder import (
    FILES,
    ResultsFolder,
    Verdict,
    check_columns,
    make_verdict,
)
from simulator.results.run_bands_text import is_sure

TABLE = "sweep.csv"
_PARTS = {"run.json", TABLE, "report.html", "points"}
_FIXED = ("point", "seed", "deployment")


@dataclass(frozen=True)
class Sweep(ResultsFolder):
    """A finished sweep: its points, and the metrics of each point and deployment.

    ``run`` has ``keys`` (swept keys by name, each with its values in order), ``points`` (a dict
    each: ``point``, the keys' values, ``seed``, and either ``winner``, ``chance`` and ``headline``
    or ``refusal``), ``name``, ``deployments`` by name, and provenance.
    """

    table: pd.DataFrame
    """Contents of ``sweep.csv``."""

    writer = "a sweep"
    files = {"table": TABLE}

    @property
    def verdict(self) -> Verdict:
        """Findings in sentences."""
        return make_verdict(find_sweep(self))

    @classmethod
    def list_foreign(cls, folder: Path) -> list[str]:
        """Files that are no part of a sweep, or of a run among its points."""
        found = sorted(entry.name for entry in folder.iterdir() if entry.name not in _PARTS)
        points = folder / "points"
        return found + [f"points/{name}" for name in sorted(_list_foreign(points))]

    @classmethod
    def read_files(cls, folder: Path, run: dict[str, Any]) -> Self:
        """Read the table."""
        found = super().read_files(folder, run)
        check_columns(found.table, (*_FIXED, *METRICS, *run["keys"]), TABLE)
        return found

    @property
    def keys(self) -> dict[str, list[object]]:
        """Values of each swept key, in the order in which they were given."""
        found: dict[str, list[object]] = self.run["keys"]
        return found

    @property
    def settings(self) -> list[dict[str, object]]:
        """Combinations of the keys' values that some point has, each once for all its seeds."""
        found = {
            repr([point[key] for key in self.keys]): {key: point[key] for key in self.keys}
            for point in self.run["points"]
        }
        return list(found.values())

    def rows_at(self, setting: Mapping[str, object]) -> pd.DataFrame:
        """Rows of a setting, all seeds and deployments."""
        names = {point["point"] for point in self.points_at(setting)}
        return self.table[self.table["point"].isin(names)]

    def points_at(self, setting: Mapping[str, object]) -> list[dict[str, Any]]:
        """Points of a setting, one for each seed."""
        return [
            point
            for point in self.run["points"]
            if all(point[key] == value for key, value in setting.items())
        ]


def measure_spread(rows: pd.DataFrame, metric: str) -> tuple[float, float, int]:
    """Mean of a metric over seeds, its standard deviation (with n - 1; NaN of one seed), and number
    of seeds with a value.

    >>> measure_spread(pd.DataFrame({"ttft_p50_s": [1.0, 3.0, np.nan]}), "ttft_p50_s")
    (2.0, 1.4142135623730951, 2)
    """
    values = rows[metric].dropna().to_numpy(np.float64)
    if not len(values):
        return np.nan, np.nan, 0
    spread = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    return float(values.mean()), spread, len(values)


def order_columns(table: pd.DataFrame, keys: Iterable[str]) -> pd.DataFrame:
    """Order the columns for ``sweep.csv``."""
    return table[["point", *keys, "seed", "deployment", *METRICS, "chance"]]


def _list_foreign(points: Path) -> Iterator[str]:
    """Yield files among the points that are not part of a run."""
    for entry in points.iterdir() if points.is_dir() else ():
        if not entry.is_dir():
            yield entry.name
            continue
        yield from (
            f"{entry.name}/{file.name}" for file in entry.iterdir() if file.name not in FILES
        )


def write_point(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Write the folder of a point, and release its files.

    Args:
        folder: folder of the sweep.
    """
    if files:
        own = folder / "points" / name
        own.mkdir(parents=True)
        for file, content in files.items():
            (own / file).write_bytes(content)
        files.clear()


_WIDE = 0.05
"""Spread of a figure over its mean above which a single seed says little."""
_MOST_TOLD = 12
"""Most settings whose winner is stated one by one."""
NO_WINNER = "none is better (a tie or a trade-off)"
_SPREAD_OF = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "output_tokens_per_s")


def value_text(value: object) -> str:
    """Write a swept value for people.

    >>> value_text(2.0), value_text("vllm"), value_text({"kind": "zipf"})
    ('2.0', 'vllm', '{"kind": "zipf"}')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


def setting_text(setting: Mapping[str, object]) -> str:
    """Name a setting by the last part of each key, or by the whole key where that is ambiguous.

    >>> setting_text({"workload.rate_scale": 2, "deployments.0.engine": "vllm"})
    'rate_scale = 2, engine = vllm'
    >>> setting_text({"deployments.0.engine": "vllm", "deployments.1.engine": "sglang"})
    'deployments.0.engine = vllm, deployments.1.engine = sglang'
    """
    named = name_keys(setting)
    return ", ".join(f"{named[key]} = {value_text(value)}" for key, value in setting.items())


def name_keys(keys: Iterable[str]) -> dict[str, str]:
    """Name keys by their last part, or whole where that is ambiguous or a number."""
    ends = {key: key.rpartition(".")[2] for key in keys}
    names = list(ends.values())
    return {
        key: key if names.count(end) > 1 or end.isdecimal() else end for key, end in ends.items()
    }


def find_sweep(sweep: Sweep) -> Iterator[Finding]:
    """Find a headline, and what else there is to say."""
    winners = [(setting, winners_at(sweep, setting)) for setting in sweep.settings]
    winners = [(setting, own) for setting, own in winners if own]
    is_one = len({tuple(own) for _, own in winners}) == 1 and len(winners[0][1]) == 1
    points = sweep.run["points"]
    doubt = _find_doubt(points)
    if not winners:
        yield _find_range(sweep)
    elif len(winners) == 1:
        yield Finding("sweep.seeds", winners=winners[0][1], doubt=doubt)
    elif is_one:
        has_refused = len(winners) < len(sweep.settings)
        best = next(iter(winners[0][1]))
        yield Finding("sweep.everywhere", best=best, has_refused=has_refused, doubt=doubt)
    else:
        yield Finding("sweep.depends", doubt=doubt)
        for setting, own in winners[:_MOST_TOLD]:
            at, unsure = setting_text(setting), _find_doubt(sweep.points_at(setting))
            yield Finding("sweep.at_setting", setting=at, winners=own, doubt=unsure)
        if len(winners) > _MOST_TOLD:
            yield Finding("sweep.more_settings", more=len(winners) - _MOST_TOLD)
    if doubt is not None and len(points) > len(sweep.settings):
        yield Finding("sweep.same_error")
    for name in dict.fromkeys(point["winner"] for point in points if point.get("chance_unknown")):
        yield Finding("verdict.chance_unknown", name=name)
    refused = [point for point in points if "refusal" in point]
    if refused:
        why = refused[0]["refusal"]
        yield Finding("sweep.refused", refused=len(refused), points=len(points), why=why)
    yield from _find_hardware(sweep)
    yield from _find_spread(sweep)


def winners_at(sweep: Sweep, setting: Mapping[str, object]) -> dict[str, int]:
    """Count the seeds with which each deployment is better at a setting; empty where there is one
    deployment.
    """
    found: dict[str, int] = {}
    for point in sweep.points_at(setting):
        deployments = (sweep.table["point"] == point["point"]).sum()
        if "refusal" not in point and deployments > 1:
            winner = point["winner"] or NO_WINNER
            found[winner] = found.get(winner, 0) + 1
    return found


def chance_at(sweep: Sweep, setting: Mapping[str, object], winner: str) -> float | None:
    """Mean over seeds of the probability with which a deployment is better at a setting; ``None``
    where none was drawn.
    """
    points = [point for point in sweep.points_at(setting) if point.get("winner") == winner]
    chances = [point["chance"] for point in points if point.get("chance") is not None]
    return float(np.mean(chances)) if chances else None


def _find_doubt(points: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Find at how many points the better deployment is not sure, and its probabilities there;
    ``None`` where it is at all of them.
    """
    judged = [point for point in points if point.get("winner") is not None]
    chances = sorted(one["chance"] for one in judged if not is_sure(one.get("chance")))
    if not chances:
        return None
    ends = [chances[0], chances[-1]]
    return Finding("sweep.doubt", unsure=len(chances), points=len(judged), chances=ends)


def _find_hardware(sweep: Sweep) -> Iterator[Finding]:
    """Find at which settings the deployments have not the same hardware."""
    at: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for setting in sweep.settings:
        told = [point.get("other_hardware") for point in sweep.points_at(setting)]
        for gpus in filter(None, told[:1]):
            at.setdefault(tuple(gpus.items()), []).append(setting_text(setting))
    if at:
        found = [(dict(gpus), settings) for gpus, settings in at.items()]
        is_all = sum(map(len, at.values())) == len(sweep.settings)
        yield Finding("sweep.other_hardware", found=found, is_all=is_all, most=_MOST_TOLD)


def _find_spread(sweep: Sweep) -> Iterator[Finding]:
    """Find the figure that seeds differ in most, over all settings."""
    widest, found = 0.0, None
    for setting in sweep.settings:
        at = setting_text(setting) if setting else ""
        for deployment, own in sweep.rows_at(setting).groupby("deployment", sort=False):
            for name in _SPREAD_OF:
                mean, spread, count = measure_spread(own, name)
                if math.isfinite(spread) and mean > 0 and spread / mean > widest:
                    widest = share = spread / mean
                    facts = {"label": METRICS[name].label, "name": deployment, "at": at}
                    found = Finding(
                        "sweep.spread", share=share, seeds=count, is_wide=share >= _WIDE, **facts
                    )
    if found is not None:
        yield found


def _find_range(sweep: Sweep) -> Finding:
    """Find the range of the medians of a single deployment."""
    ranges = {}
    for name in ("ttft_p50_s", "tpot_p50_s"):
        values = sweep.table[name].dropna()
        if len(values):
            ends = [metric(name, float(edge), "") for edge in (values.min(), values.max())]
            ranges[METRICS[name].label] = ends
    return Finding("sweep.range", name=sweep.deployments[0], ranges=ranges)
