"""The results folder of a plan: written whole or not at all, and read back by ``moesim report``.

| file | holds |
|---|---|
| ``plan.json`` | the answer, as ``moesim plan --json`` prints it: the same bytes for the same
question, seed and version |
| ``run.json`` | how it was made: command, seed, versions, source revision, wall time, the question
as it was resolved |
| ``candidates.csv``, ``pareto.csv``, ``ruled_out.csv`` | what was found, a row a deployment or a
reason |
| ``sensitivity.csv``, ``losses.csv``, ``crossover.csv`` | where the answer has them |
| ``recommended.toml`` and others | scenarios that ``moesim run`` takes as they are |
| ``report.html`` | the report |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.base.errors import UserError
from simulator.base.spreadsheet import write_csv
from simulator.config.capacity import Question
from simulator.report.plan_page import render
from simulator.results.folder import check_writable as check_results
from simulator.results.folder import replace_folder
from simulator.results.provenance import Provenance
from simulator.results.run_file import read_run, write_run

_TABLES = ("candidates", "pareto", "ruled_out", "sensitivity", "losses")
_MAPS = ("cells", "at_same_time", "at_full_load")
"""Tables of the crossover map."""
_FIXED = frozenset({"plan.json", "crossover.csv", *(f"{name}.csv" for name in _TABLES)})


def describe_run(question: Question, made: Provenance) -> dict[str, Any]:
    """What ``run.json`` says of a plan: its question, and how it was made."""
    own = {"name": question.name, "seed": question.seed}
    return own | made.describe() | {"question": question.model_dump(mode="json")}


def is_plan(folder: Path) -> bool:
    """Whether a folder is of ``moesim plan``."""
    return (folder / "plan.json").is_file()


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, or holds something other than results, before any
    work is done.

    Raises:
        UserError: with what stands in the way.
    """
    check_results(folder, _FIXED | _scenarios_in(folder) if is_plan(folder) else frozenset())


def write(answer: dict[str, Any], run: dict[str, Any], folder: Path) -> None:
    """Write the folder under a temporary name and rename it when it is whole; an earlier plan of
    that name is replaced.

    Raises:
        UserError: if ``folder`` exists and holds something else, or cannot be written; nothing is
            left behind then.
    """
    check_writable(folder)
    page = render(answer, run)
    replace_folder(folder, lambda new: _fill(new, answer, run, page))


def _fill(folder: Path, answer: dict[str, Any], run: dict[str, Any], page: str) -> None:
    folder.mkdir()
    write_run(run, folder)
    text = json.dumps(answer, indent=1, allow_nan=False)
    (folder / "plan.json").write_text(text + "\n", encoding="utf-8")
    for name in _TABLES:
        if name in ("candidates", "pareto", "ruled_out") or answer.get(name):
            write_csv(pd.json_normalize(answer.get(name) or []), folder / f"{name}.csv")
    if answer.get("crossover"):
        maps = [
            {"reading": name, **row} for name in _MAPS for row in answer["crossover"].get(name, [])
        ]
        write_csv(pd.json_normalize(maps), folder / "crossover.csv")
    for scenario in _scenarios(answer):
        (folder / scenario["file"]).write_text(scenario["text"], encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer of a folder, and how it was made.

    Raises:
        UserError: if a file is missing or broken, or another version wrote it in another schema.
    """
    try:
        run = read_run(folder)
        answer = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        if not isinstance(answer, dict) or "headline" not in answer:
            raise ValueError("plan.json holds no answer")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: is not a whole folder of moesim plan: {' '.join(str(error).split())}"
        ) from error
    return answer, run


def _scenarios(answer: dict[str, Any]) -> list[dict[str, str]]:
    return list((answer.get("handover") or {}).get("scenarios") or [])


def _scenarios_in(folder: Path) -> frozenset[str]:
    """Scenario files that the plan in a folder wrote."""
    try:
        return frozenset(
            scenario["file"]
            for scenario in _scenarios(
                json.loads((folder / "plan.json").read_text(encoding="utf-8"))
            )
        )
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return frozenset()
