"""``moesim run`` over many settings and seeds: every point a run of its own, on all cores."""

from __future__ import annotations

import itertools
import json
import shlex
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.base import trust
from simulator.base.errors import UserError
from simulator.base.progress import Progress, count_part, show_nothing
from simulator.base.text import one_line, toml_text
from simulator.commands.run import run_scenario
from simulator.engine.timeline import Fidelity
from simulator.parallel.workers import Workers
from simulator.report.page import render
from simulator.results import sweep as sweeps
from simulator.results.folder import replace_folder, write
from simulator.results.provenance import Provenance
from simulator.results.sweep import Sweep, order_columns
from simulator.results.sweep_text import value_text
from simulator.scenario.scenario import load_scenario

_SCENARIO = "scenario"
"""Key that stands for the file, where there are several."""
_MOST_POINTS = 1_000
"""Folders of a sweep: each has some three megabytes, the page with its plots among them."""
_LONGEST_NAME = 100
"""Characters of a point's folder."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Name of its folder."""
    scenario: str
    overrides: tuple[str, ...]
    seed: int
    setting: tuple[tuple[str, Any], ...]
    """The swept keys with their values."""


@dataclass(frozen=True)
class _Done:
    """What came of a point."""

    name: str
    """Name of the point's folder."""
    facts: dict[str, Any]
    """``name`` and ``deployments`` of the scenario, and either ``winner`` and ``headline`` or
    ``refusal``."""
    summary: pd.DataFrame | None
    files: dict[str, bytes]


def list_points(
    scenarios: Sequence[str],
    overrides: Sequence[str],
    keys: Sequence[str],
    seed: int | None,
    num_seeds: int,
) -> tuple[list[Point], dict[str, list[Any]]]:
    """Every combination of scenarios, swept values and seeds, and the values of each swept key.

    Args:
        overrides: ``path=value`` texts that hold for all points.
        keys: ``path=value,value`` texts.
        seed: the first one; by default each scenario's own.

    Raises:
        UserError: if a text names nothing, a key comes twice, there are too many points, or a
            scenario does not exist or takes no such value.
    """
    twice = [name for number, name in enumerate(scenarios) if name in scenarios[:number]]
    if twice:
        raise UserError(f"{twice[0]}: is named twice; --seeds N runs it with several seeds")
    swept = dict(map(_read_key, keys))
    if len(swept) < len(keys):
        raise UserError("--sweep: a key is named twice; give all its values at once")
    num_points = len(scenarios) * num_seeds
    for given in swept.values():
        num_points *= len(given)
    if num_points > _MOST_POINTS:
        raise UserError(
            f"--sweep: {num_points:,} points, must be at most {_MOST_POINTS:,}; sweep fewer values"
        )
    values: dict[str, list[Any]] = {_SCENARIO: list(scenarios)} if len(scenarios) > 1 else {}
    values |= swept
    points: list[Point] = []
    for scenario, *chosen in itertools.product(scenarios, *swept.values()):
        setting = dict(zip(swept, chosen, strict=True))
        texts = (*overrides, *(f"{key}={toml_text(value)}" for key, value in setting.items()))
        loaded, path = load_scenario(scenario, list(texts), seed)
        if len(scenarios) > 1:
            setting = {_SCENARIO: scenario, **setting}
        for number in range(num_seeds):
            own = loaded.seed + number
            points.append(
                Point(
                    _name(len(points), path.stem, setting, own if num_seeds > 1 else None),
                    scenario,
                    texts,
                    own,
                    tuple(setting.items()),
                )
            )
    return points, values


def run_sweep(
    points: Sequence[Point],
    keys: Mapping[str, list[Any]],
    folder: Path,
    fidelity: Fidelity = "step",
    workers: int | None = None,
    address: str | None = None,
    tick: Progress = show_nothing,
) -> Sweep:
    """Run all points, on this machine's cores or on a Ray cluster's nodes, and write the folder.
    What comes out does not depend on how many processes there are.

    A point that is refused (a model that does not fit, say) is told as such, and the others go on.

    Args:
        keys: the values of each swept key.
        workers: processes; by default one a core, or one a CPU of the cluster.

    Raises:
        UserError: if every point is refused, the cluster cannot be joined, or the folder holds
            something else.
    """
    from simulator.report.sweep_page import render as render_sweep

    sweeps.check_writable(folder)
    found: list[Sweep] = []

    def fill(new: Path) -> None:
        new.mkdir()
        found.append(_run_points(points, keys, new, fidelity, workers, address, tick))
        tick("writing the report", 0, None)
        sweeps.write(found[0], new, render_sweep(found[0]))

    replace_folder(folder, fill)
    return found[0]


def _run_points(
    points: Sequence[Point],
    keys: Mapping[str, list[Any]],
    folder: Path,
    fidelity: Fidelity,
    workers: int | None,
    address: str | None,
    tick: Progress,
) -> Sweep:
    """Run all points, and write each one's folder as it comes."""
    made = Provenance.begin()
    count = min(workers, len(points)) if workers else None
    with Workers(count, address) as pool:
        done = pool.map(
            partial(_run_point, fidelity=fidelity),
            points,
            count_part(tick, "points", len(points)),
            seen=lambda one: sweeps.write_point(folder, one.name, one.files),
            group=lambda point: repr((point.scenario, point.setting)),
        )
    if all(one.summary is None for one in done):
        raise UserError(f"every point is refused, the first since {done[0].facts['refusal']}")
    tables = []
    for point, one in zip(points, done, strict=True):
        if one.summary is not None:
            own = {"point": point.name, **_shown(dict(point.setting)), "seed": point.seed}
            tables.append(one.summary.assign(**own))
    deployments: dict[str, Any] = {}
    for one in done:
        for name, facts in one.facts.pop("deployments", {}).items():
            deployments.setdefault(name, facts)
    run = {
        "name": next(one.facts["name"] for one in done if one.summary is not None),
        "fidelity": fidelity,
        "keys": dict(keys),
        "points": [
            {"point": point.name, **dict(point.setting), "seed": point.seed, **one.facts}
            for point, one in zip(points, done, strict=True)
        ],
        "deployments": deployments,
        **made.describe(),
    }
    return Sweep(run, order_columns(pd.concat(tables, ignore_index=True), keys))


def _run_point(point: Point, fidelity: Fidelity) -> _Done:
    try:
        scenario, path = load_scenario(point.scenario, list(point.overrides), point.seed)
        results = run_scenario(scenario, path, fidelity)
    except UserError as error:
        return _Done(point.name, {"refusal": one_line(str(error))}, None, {})
    results.run["command"] = _command(point, fidelity)
    with tempfile.TemporaryDirectory(prefix="moesim-point-") as place:
        write(results, Path(place) / "point", render)
        files = {path.name: path.read_bytes() for path in (Path(place) / "point").iterdir()}
    verdict = results.run["verdict"]
    facts = {
        "name": scenario.name,
        "winner": verdict["winner"],
        "headline": verdict["headline"],
        "deployments": {
            name: {
                key: results.run["deployments"][name][key]
                for key in ("currency", "is_rumour", "model_title")
            }
            for name in results.deployments
        },
    }
    return _Done(point.name, facts, results.summary, files)


def _command(point: Point, fidelity: Fidelity) -> str:
    """What makes a point again by itself."""
    words = ["moesim", "run", point.scenario, "--seed", str(point.seed)]
    words += [word for override in point.overrides for word in ("--set", override)]
    words += [trust.FLAG] if trust.allowed_folder() is not None else []
    return shlex.join(words + (["--fidelity", fidelity] if fidelity != "step" else []))


def _read_key(text: str) -> tuple[str, list[Any]]:
    """The key and its values in ``path=value,value``.

    >>> _read_key("workload.rate_scale=1,2.5")
    ('workload.rate_scale', [1, 2.5])
    >>> _read_key("deployments.0.engine=vllm,sglang")
    ('deployments.0.engine', ['vllm', 'sglang'])
    """
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise UserError(
            f"--sweep {text}: must be path=value,value, such as workload.rate_scale=1,2,4"
        )
    try:
        found = tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        found = [_read_value(value.strip()) for value in values.split(",")]
    found = json.loads(json.dumps(found, default=str))  # dates are texts
    if key.strip() == "seed":
        raise UserError(f"--sweep {text}: seeds are asked for by --seeds N")
    if any(value == "" for value in found):
        raise UserError(f"--sweep {text}: there is an empty value among them")
    again = [value for number, value in enumerate(found) if value in found[:number]]
    if again:
        raise UserError(f"--sweep {text}: {again[0]!r} is named twice")
    return key.strip(), found


def _read_value(text: str) -> Any:
    """A TOML value, or a text without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _shown(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a cell of a table holds them: numbers and texts as they are, the rest as TOML."""
    return {
        key: value if isinstance(value, int | float | str) else toml_text(value)
        for key, value in setting.items()
    }


def _name(number: int, stem: str, setting: Mapping[str, Any], seed: int | None) -> str:
    """A point's folder: its number, so that names differ, and what it is in letters that any file
    system takes.
    """
    parts = [stem, *(f"{key.split('.')[-1]}-{value_text(value)}" for key, value in setting.items())]
    parts += [] if seed is None else [f"seed-{seed}"]
    letters = "".join(c if c.isalnum() or c in "-._" else "-" for c in "_".join(parts))
    while "--" in letters:
        letters = letters.replace("--", "-")
    return f"{number:03}_{letters}"[:_LONGEST_NAME].rstrip("-._")
