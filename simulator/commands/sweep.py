"""``moesim run`` with a sweep: its points, and each of them run."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from simulator.base import trust
from simulator.base.errors import UserError
from simulator.base.progress import Progress, count_part, show_nothing
from simulator.base.text import inline_toml, make_plain, one_line
from simulator.commands.report import write_results
from simulator.commands.run import check_fidelity, run
from simulator.engine.by_ranks import Fidelity
from simulator.parallel.work_list import check_count
from simulator.parallel.workers import Workers
from simulator.results.provenance import Provenance
from simulator.results.results_folder import replace_folder
from simulator.results.sweep import Sweep, order_columns, value_text, write_point
from simulator.results.verdict import compare_hardware
from simulator.runtime import require
from simulator.scenario.jobs import Overrides, load_scenario, override_texts

SweptKeys = Sequence[str] | Mapping[str, Sequence[object]]
"""Keys with the values that each takes: lists by dotted path, or ``path=value,value`` texts."""
_SCENARIO = "scenario"
"""Key that stands for the file, where there are several."""
_MOST_POINTS = 1_000
"""Folders of a sweep: each has some three megabytes, the page with its plots among them."""
_LONGEST_NAME = 100
"""Characters of a point's folder."""


@dataclass(frozen=True)
class Point:
    """Run of a sweep at one setting and seed."""

    name: str
    """Name of its folder."""
    scenario: str
    overrides: tuple[str, ...]
    seed: int
    setting: tuple[tuple[str, object], ...]
    """The swept keys with their values."""


def list_points(
    scenarios: Sequence[str],
    overrides: Sequence[str],
    keys: SweptKeys,
    seed: int | None,
    num_seeds: int,
) -> tuple[list[Point], dict[str, list[object]]]:
    """List every combination of scenarios, swept values and seeds, and the values of each swept
    key.

    Args:
        overrides: ``path=value`` texts that hold for all points.
        seed: first seed; ``None`` = each scenario's own.

    Raises:
        UserError: if a text names nothing, a key comes twice, there are too many points, or a
            scenario does not exist or takes no such value.
    """
    if not scenarios or num_seeds < 1:
        raise UserError(
            f"a sweep needs a scenario and a seed, got {len(scenarios)} and {num_seeds}"
        )
    twice = [name for number, name in enumerate(scenarios) if name in scenarios[:number]]
    if twice:
        raise UserError(f"{twice[0]}: is named twice; --seeds N runs it with several seeds")
    swept = _read_keys(keys)
    num_points = len(scenarios) * num_seeds * math.prod(map(len, swept.values()))
    if num_points > _MOST_POINTS:
        raise UserError(
            f"--sweep: {num_points:,} points, must be at most {_MOST_POINTS:,}; sweep fewer values"
        )
    values: dict[str, list[object]] = {_SCENARIO: list(scenarios)} if len(scenarios) > 1 else {}
    values |= swept
    points: list[Point] = []
    every = itertools.product(*swept.values())
    for scenario, chosen in itertools.product(scenarios, every):
        setting = dict(zip(swept, chosen, strict=True))
        texts = (*overrides, *(f"{key}={inline_toml(value)}" for key, value in setting.items()))
        loaded = load_scenario(scenario, texts, seed)
        stem = Path(loaded.where).stem
        if len(scenarios) > 1:
            setting = {_SCENARIO: scenario, **setting}
        for number in range(num_seeds):
            own = loaded.seed + number
            points.append(
                Point(
                    _name_point(len(points), stem, setting, own if num_seeds > 1 else None),
                    scenario,
                    texts,
                    own,
                    tuple(setting.items()),
                )
            )
    return points, values


def _read_keys(keys: SweptKeys) -> dict[str, list[object]]:
    if isinstance(keys, Mapping):
        return {key: _check_values(key, list(values), key) for key, values in keys.items()}
    swept = dict(map(_read_key, keys))
    if len(swept) < len(keys):
        raise UserError("--sweep: a key is named twice; give all its values at once")
    return swept


def _read_key(text: str) -> tuple[str, list[object]]:
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
    return key.strip(), _check_values(key.strip(), found, text)


def _check_values(key: str, values: Sequence[object], text: str) -> list[object]:
    """Values as JSON has them, dates as texts.

    Raises:
        UserError: if they cannot be swept.
    """
    found: list[object] = json.loads(json.dumps(list(map(make_plain, values)), default=str))
    if None in found:
        raise UserError(f"--sweep {text}: None is no value that a file can hold")
    if key == "seed":
        raise UserError(f"--sweep {text}: seeds are asked for by --seeds N")
    if not found or any(value == "" for value in found):
        raise UserError(f"--sweep {text}: there is an empty value among them")
    again = [value for number, value in enumerate(found) if value in found[:number]]
    if again:
        raise UserError(f"--sweep {text}: {again[0]!r} is named twice")
    return found


def _read_value(text: str) -> object:
    """A TOML value, or a text without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _name_point(number: int, stem: str, setting: Mapping[str, object], seed: int | None) -> str:
    """Name of a point's folder: its number, so that names differ, and its setting in letters that
    any file system takes.
    """
    parts = [stem, *(f"{key.split('.')[-1]}-{value_text(value)}" for key, value in setting.items())]
    parts += [] if seed is None else [f"seed-{seed}"]
    letters = "".join(c if c.isalnum() or c in "-._" else "-" for c in "_".join(parts))
    while "--" in letters:
        letters = letters.replace("--", "-")
    return f"{number:03}_{letters}"[:_LONGEST_NAME].rstrip("-._")


@dataclass(frozen=True)
class _Done:
    """Results of a point."""

    name: str
    """Name of the point's folder."""
    facts: dict[str, object]
    """``name`` of the scenario, and either ``winner`` and what else its verdict says, or
    ``refusal``."""
    deployments: dict[str, dict[str, object]]
    """Facts of the scenario's deployments."""
    summary: pd.DataFrame | None
    files: dict[str, bytes]


def sweep(
    scenarios: str | Path | Sequence[str | Path],
    folder: str | Path,
    keys: SweptKeys = (),
    *,
    overrides: Overrides = (),
    seed: int | None = None,
    num_seeds: int = 1,
    fidelity: Fidelity = "step",
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = show_nothing,
) -> Sweep:
    """Run every combination of scenarios, swept values and seeds, and write a folder with a results
    folder for each and a report over all. Results do not depend on the number of processes.

    A point that is refused (a model that does not fit, say) is reported as such, and the others go
    on.

    Args:
        scenarios: paths of TOML files, or names of shipped ones.
        folder: folder to write; an earlier sweep in it is replaced.
        keys: values by dotted path, ``{"workload.rate_scale": [1.0, 2.0]}``; several keys are
            combined.
        overrides: keys that hold for all points, as of :func:`load_scenario`.
        seed: first seed; ``None`` = each scenario's own.
        num_seeds: number of seeds, counted on from the first.
        fidelity: as of :func:`run`.
        workers: processes; ``None`` = one a core, or one a CPU of the cluster.
        address: Ray cluster (``host:port``) whose nodes run points.
        progress: called with the name of a part of the work, how many points are done, and how many
            there are.

    Raises:
        UserError: if a scenario or a value is wrong, every point is refused, the cluster cannot be
            joined, or the folder holds something else.
    """
    check_fidelity(fidelity)
    check_count(workers)
    if address is not None:
        require("ray", "--address")
    names = [scenarios] if isinstance(scenarios, str | Path) else scenarios
    points, values = list_points(
        list(map(str, names)), override_texts(overrides), keys, seed, num_seeds
    )
    from simulator.report.sweep_page import render

    Sweep.check_writable(Path(folder))
    made = Provenance.begin()
    found: list[Sweep] = []

    def fill(new: Path) -> None:
        new.mkdir()
        with Workers(min(workers, len(points)) if workers else None, address) as pool:
            done = pool.map(
                partial(_run_point, fidelity=fidelity),
                points,
                count_part(progress, "points", len(points)),
                seen=lambda one: write_point(new, one.name, one.files),
                group=lambda point: repr((point.scenario, point.setting)),
            )
        found.append(_gather(points, done, values, fidelity, made))
        progress("writing the report", 0, None)
        found[0].write_files(new, {"report.html": render(found[0])})

    replace_folder(Path(folder), fill)
    return found[0]


def _gather(
    points: Sequence[Point],
    done: Sequence[_Done],
    keys: Mapping[str, list[object]],
    fidelity: Fidelity,
    made: Provenance,
) -> Sweep:
    """Put the results of all points together.

    Raises:
        UserError: if every point is refused.
    """
    if all(one.summary is None for one in done):
        raise UserError(f"every point is refused, the first since {done[0].facts['refusal']}")
    tables = []
    for point, one in zip(points, done, strict=True):
        if one.summary is not None:
            setting = _show_setting(dict(point.setting))
            chances = {one.facts["winner"]: one.facts["chance"]}
            chance = one.summary["deployment"].map(chances).astype(float)
            own = one.summary.assign(point=point.name, **setting, seed=point.seed, chance=chance)
            tables.append(own)
    deployments: dict[str, dict[str, object]] = {}
    for one in done:
        for name, facts in one.deployments.items():
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
        scenario = load_scenario(point.scenario, point.overrides, point.seed)
        results = run(scenario, fidelity=fidelity)
    except UserError as error:
        return _Done(point.name, {"refusal": one_line(str(error))}, {}, None, {})
    results.run["command"] = _make_command(point, fidelity)
    with tempfile.TemporaryDirectory(prefix="moesim-point-") as place:
        write_results(results, Path(place) / "point")
        files = {path.name: path.read_bytes() for path in (Path(place) / "point").iterdir()}
    verdict = results.verdict
    deployments = {
        name: {key: results.facts(name)[key] for key in ("currency", "is_rumour", "model_title")}
        for name in results.deployments
    }
    facts: dict[str, object] = {
        "name": scenario.name,
        "winner": verdict["winner"],
        "chance": verdict["chance"],
        "chance_unknown": any(
            found["kind"] == "verdict.chance_unknown" for found in verdict["findings"]
        ),
        "headline": verdict["headline"],
        "other_hardware": compare_hardware(results),
    }
    return _Done(point.name, facts, deployments, results.summary, files)


def _make_command(point: Point, fidelity: Fidelity) -> str:
    """Command line that makes a point again by itself."""
    words = ["moesim", "run", point.scenario, "--seed", str(point.seed)]
    words += [word for override in point.overrides for word in ("--set", override)]
    words += [trust.FLAG] if trust.allowed_folder() is not None else []
    return shlex.join(words + (["--fidelity", fidelity] if fidelity != "step" else []))


def _show_setting(setting: Mapping[str, object]) -> dict[str, str | float]:
    """Values as a cell of a table holds them: numbers and texts as they are, the rest as TOML."""
    return {
        key: value if isinstance(value, int | float | str) else inline_toml(value)
        for key, value in setting.items()
    }
