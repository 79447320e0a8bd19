"""``moesim plan``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from simulator.base.caches import findings_folder
from simulator.base.errors import UserError
from simulator.base.progress import Progress, show_nothing
from simulator.base.reading import read_bytes
from simulator.config.capacity import Question
from simulator.parallel.work_list import check_count
from simulator.planner.capacity import plan_capacity
from simulator.planner.store import Store
from simulator.report.plan_page import render
from simulator.results.answer import Answer
from simulator.results.answer.handover import COMPARED, RECOMMENDED, TRAFFIC
from simulator.results.answer.parts import Part, make_table
from simulator.results.folder import (
    Content,
    replace_folder,
    write_files,
)
from simulator.results.folder import (
    check_writable as check_results,
)
from simulator.results.provenance import Provenance
from simulator.results.run_file import find_writer, read_run, refuse_damaged
from simulator.runtime import require
from simulator.scenario.question import load_question
from simulator.workload.traces.table import list_columns


def plan(
    question: Question | str | Path | Mapping[str, Any],
    *,
    folder: str | Path | None = None,
    cache: str | Path | Store | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = show_nothing,
) -> Answer:
    """Find the cheapest deployments, MoE or dense, that meet latency targets for a workload.

    The answer is the same for the same question, seed and version. A search that is interrupted
    keeps its simulations, and goes on where it was when it is asked again.

    Args:
        question: as :func:`load_question` takes it, which also overrides keys.
        folder: results folder to write, with the report; ``None`` = none.
        cache: folder where finished simulations are kept; ``None`` = in the user's cache folder.
        workers: processes; ``None`` = one a core, or one a CPU of the cluster.
        address: Ray cluster (``host:port``) whose nodes simulate.
        progress: called with the name of a part of the work, how much of it is done, how much there
            is (``None`` where that is unknown) and, in a search, the best deployment so far, which
            is absent elsewhere: ``progress(name, done, total, best="")``.

    Raises:
        UserError: if the question is wrong, the cluster cannot be joined, or a folder cannot be
            written.
    """
    check_count(workers)
    if address is not None:
        require("ray", "--address")
    if not isinstance(question, Question):
        question = load_question(question)
    target = None if folder is None else Path(folder)
    if target is not None:
        check_writable(target)
    store = cache if isinstance(cache, Store) else Store(Path(cache or findings_folder()))
    store.check_writable()
    made, where = Provenance.begin(), question.where
    try:
        answer = plan_capacity(question, question.folder, store, progress, workers, address, target)
    except UserError as error:
        raise UserError(re.sub(r"^plan(?=[: ])", lambda _: where, str(error))) from None
    if target is not None:
        progress("writing the report", 0, None)
        write(answer, describe_run(question, made), target)
    return answer


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
