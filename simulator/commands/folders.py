"""Results folders as input: what one was made from, and how two differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


class Difference(NamedTuple):
    """Something that two folders have otherwise."""

    name: str
    """A key of the scenario or question, or a deployment's metric, in its unit."""
    first: Any
    """Value in the first folder; ``None`` = none."""
    second: Any
    deployment: str = ""
    """Deployment whose metric it is; of a plan the recommended one."""

    @property
    def change(self) -> float:
        """Second value less the first, of a metric."""
        return float(self.second - self.first)

    @property
    def ratio(self) -> float | None:
        """Second value over the first, of a metric; ``None`` where that is 0."""
        return float(self.second / self.first) if self.first else None


def diff(first: str | Path, second: str | Path) -> list[Difference]:
    """Find the metrics in which two results folders of runs, trainings or plans differ, and then
    the keys that they were made from.

    Deployments are compared by name, or, where no name is in both, in their order.

    Raises:
        UserError: if a folder cannot be read, or has no such metrics.
    """
    facts = [_read_facts(Path(place)) for place in (first, second)]
    left, right = (_read_metrics(folder) for folder, _ in facts)
    pairs = [(name, name) for name in left if name in right] or list(zip(left, right, strict=False))
    found = [
        Difference(metric, left[one][metric], right[other][metric], one)
        for one, other in pairs
        for metric in left[one]
        if metric in right[other] and left[one][metric] != right[other][metric]
    ]
    before, after = (dict(_list_keys(run)) for _, run in facts)
    keys = (Difference(key, before.get(key), after.get(key)) for key in {**before, **after})
    return found + [one for one in keys if one.first != one.second]


def _read_metrics(folder: Path) -> dict[str, dict[str, float]]:
    """Numbers of each deployment; of a plan those of the recommended one."""
    writer = find_writer(folder)
    if writer == PlanResults.writer:
        row = PlanResults.read(folder).answer.recommended
        figures = {} if row is None else row.model_dump()
        ends = ("_low", "_high")
        return {
            "recommended": {
                name: value
                for name, value in figures.items()
                if type(value) in (int, float) and not name.endswith(ends)
            }
        }
    if not (folder / "summary.csv").is_file():
        raise UserError(f"{folder}: is a folder of {writer}; name two of a run, training or plan")
    table = read_table(folder / "summary.csv").set_index("deployment").select_dtypes("number")
    rows = ((name, row.dropna()) for name, row in table.iterrows())
    return {str(name): dict(zip(map(str, row.index), row, strict=True)) for name, row in rows}


def _list_keys(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Resolved keys of what a folder was made from, dotted as ``--set`` takes them."""
    if "fidelity" in run:
        yield "--fidelity", run["fidelity"]
    yield from _flatten(run.get("scenario") or run.get("question") or {})


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _flatten(dict(enumerate(value)), path)
    else:
        yield path, value
