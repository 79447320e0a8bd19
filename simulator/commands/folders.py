"""Results folders as input: what one was made from, and how two differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.config.job import Job
from simulator.results.answer.folder import PlanResults
from simulator.results.results_folder import find_writer, read_run, read_table, refuse_damaged
from simulator.scenario.jobs import find_kind


def recall_job(place: Path) -> tuple[Job, str | None]:
    """Read the scenario that a results folder was made from, and its fidelity. Paths in it are
    relative to its file, where the recorded command names one that is there.

    Args:
        place: the folder, or its ``run.json``.

    Raises:
        UserError: if it is no such folder.
    """
    folder, run = _read_facts(place)
    table = run.get("scenario") or {}
    kind = find_kind(table)
    if kind is None:
        raise UserError(
            f"{folder}: is a folder of {find_writer(folder)}, whose run.json has no scenario; name "
            "one of moesim run, or run a plan's recommended.toml"
        )
    words = shlex.split(str(run.get("command", "")))
    files = (Path(word) for word in words if word.endswith(".toml"))
    base = next((file.resolve().parent for file in files if file.is_file()), Path.cwd())
    return kind.read(table, str(folder), base), run.get("fidelity")


def _read_facts(place: Path) -> tuple[Path, dict[str, Any]]:
    folder = place.parent if place.name == "run.json" else place
    with refuse_damaged(folder, find_writer(folder)):
        return folder, read_run(folder)


_COMPARED_FACTS = ("workload", "versions", "revision")
"""Facts of ``run.json`` that may differ where no key does: a trace's file, or the program."""


class Differences(NamedTuple):
    """Metrics and keys in which two results folders differ."""

    metrics: pd.DataFrame
    """Metrics by deployment (``A / B`` where they are called so in the first and the second) and
    name: ``first`` and ``second`` in their unit, ``change`` (second less first) and ``ratio``
    (second over first)."""
    keys: dict[str, tuple[Any, Any]]
    """Resolved keys of what the folders were made from, and facts on their traffic and programs as
    ``run.json: workload.num_requests``, with both values; ``None`` = none."""


def diff(first: str | Path, second: str | Path) -> Differences:
    """Find in what two results folders of runs, trainings or plans differ by more than rounding.

    Deployments are compared by name, or, where no name is in both, in their order; of plans the
    recommended ones.

    Raises:
        UserError: if a folder cannot be read, or has no such metrics, or other ones than the first.
    """
    facts = [_read_facts(Path(place)) for place in (first, second)]
    left, right = (_read_metrics(folder) for folder, _ in facts)
    one, other = (find_writer(folder) for folder, _ in facts)
    if one != other:
        raise UserError(
            f"{second}: is a folder of {other}, whose metrics are not those of {first}, one of "
            f"{one}; name two of {one}, or two of {other}"
        )
    if not left.index.intersection(right.index).size:
        names = [" / ".join(pair) for pair in zip(left.index, right.index, strict=False)]
        left, right = (table[: len(names)].set_axis(names) for table in (left, right))
    sides = [
        table.melt(ignore_index=False, var_name="metric").set_index("metric", append=True)["value"]
        for table in (left, right)
    ]
    found = pd.concat(sides, axis=1, keys=["first", "second"], sort=False)
    is_same = np.isclose(found["first"], found["second"], rtol=1e-9, atol=1e-12, equal_nan=True)
    found = found[~is_same]
    change, ratio = found["second"] - found["first"], found["second"] / found["first"]
    before, after = (dict(_list_keys(run)) for _, run in facts)
    keys = {key: (before.get(key), after.get(key)) for key in before | after}
    return Differences(
        found.assign(change=change, ratio=ratio),
        {key: pair for key, pair in keys.items() if pair[0] != pair[1]},
    )


def _read_metrics(folder: Path) -> pd.DataFrame:
    """Numbers of each deployment; of a plan those of the recommended one."""
    writer = find_writer(folder)
    if writer == PlanResults.writer:
        row = PlanResults.read(folder).answer.recommended
        table = pd.DataFrame([] if row is None else [row.model_dump()], ["recommended"])
        table = table.filter(regex="(?<!_low)(?<!_high)$")  # without bands
    elif (folder / "summary.csv").is_file():
        table = read_table(folder / "summary.csv").set_index("deployment")
    else:
        raise UserError(f"{folder}: is a folder of {writer}; name two of a run, training or plan")
    return table.select_dtypes("number")


def _list_keys(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Resolved keys of what a folder was made from, dotted as ``--set`` takes them, and facts that
    no key decides.
    """
    if "fidelity" in run:
        yield "--fidelity", run["fidelity"]
    yield from _flatten(run.get("scenario") or run.get("question") or {})
    for name in _COMPARED_FACTS:
        if name in run:
            yield from _flatten(run[name], f"run.json: {name}")


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _flatten(dict(enumerate(value)), path)
    else:
        yield path, value
