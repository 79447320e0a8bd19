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
| ``recommended.toml`` and others | scenarios that ``moesim run`` takes as they are, and says of
them what the plan does |
| ``traffic.parquet`` | their requests, where no keys cut them out of their source |
| ``report.html`` | the report |
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from simulator.base.reading import read_bytes
from simulator.config.capacity import Question
from simulator.report.plan_page import render
from simulator.results.answer import Answer
from simulator.results.answer.handover import COMPARED, RECOMMENDED, TRAFFIC
from simulator.results.answer.parts import Part, make_table
from simulator.results.folder import Content, replace_folder, write_files
from simulator.results.folder import check_writable as check_results
from simulator.results.provenance import Provenance
from simulator.results.run_file import find_writer, read_run, refuse_damaged
from simulator.workload.traces.table import list_columns

_TABLES = ("candidates", "pareto", "ruled_out", "sensitivity", "losses")
_MAPS = ("cells", "at_same_time", "at_full_load")
"""Tables of the crossover map."""
_ALWAYS = ("candidates", "pareto", "ruled_out")
"""Tables that are written without rows too, since every answer has them."""
_FIXED = frozenset(
    {
        "plan.json",
        "crossover.csv",
        RECOMMENDED,
        COMPARED,
        TRAFFIC,
        *(f"{name}.csv" for name in _TABLES),
    }
)


def describe_run(question: Question, made: Provenance) -> dict[str, Any]:
    """Describe a plan for ``run.json``: its question, and how it was made."""
    own = {"name": question.name, "seed": question.seed}
    return own | made.describe() | {"question": question.model_dump(mode="json")}


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, or holds something other than results, before any
    work is done.

    Raises:
        UserError: with what stands in the way.
    """
    check_results(folder, _FIXED if find_writer(folder) == "moesim plan" else frozenset())


def write(answer: Answer, run: dict[str, Any], folder: Path) -> None:
    """Write the folder under a temporary name and rename it when it is whole; an earlier plan of
    that name is replaced.

    Raises:
        UserError: if ``folder`` exists and holds something else, or cannot be written; nothing is
            left behind then.
    """
    check_writable(folder)
    text = json.dumps(answer.model_dump(mode="json"), indent=1, allow_nan=False)
    files: dict[str, Content] = {"plan.json": f"{text}\n", "report.html": render(answer, run)}
    for name in _TABLES:
        rows: tuple[Part, ...] = getattr(answer, name)
        if rows or name in _ALWAYS:
            files[f"{name}.csv"] = make_table(rows)
    if answer.crossover is not None:
        points = [(name, point) for name in _MAPS for point in getattr(answer.crossover, name)]
        files["crossover.csv"] = table = make_table([point for _, point in points])
        table.insert(0, "reading", [name for name, _ in points])
    if answer.handover is not None:
        files |= {scenario.file: scenario.text for scenario in answer.handover.scenarios}
        if answer.handover.traffic is not None:
            files[TRAFFIC] = pd.DataFrame(list_columns(answer.handover.traffic))
    replace_folder(folder, partial(write_files, run, files))


def read(folder: Path) -> tuple[Answer, dict[str, Any]]:
    """The answer of a folder, and how it was made.

    Raises:
        UserError: if a file is missing or broken, or another version wrote it in another schema.
    """
    with refuse_damaged(folder, "folder of moesim plan"):
        run, text = read_run(folder), read_bytes(folder / "plan.json")
        try:
            return Answer.model_validate_json(text), run
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            reason = f"plan.json holds no answer: {where}: {problem['msg']}"
            raise ValueError(reason) from None
