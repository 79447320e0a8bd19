"""``moesim plan``."""

from __future__ import annotations

import re
from pathlib import Path

from simulator.base.caches import findings_folder
from simulator.base.errors import UserError
from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Question
from simulator.parallel.work_list import check_count
from simulator.planner.answer import plan_capacity
from simulator.planner.store import Store
from simulator.report.plan_page import render
from simulator.results.answer import Answer
from simulator.results.answer.folder import PlanResults
from simulator.results.provenance import Provenance
from simulator.runtime import require
from simulator.scenario.jobs import Source, load_question


def plan(
    question: Source,
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
        PlanResults.check_writable(target)
    store = cache if isinstance(cache, Store) else Store(Path(cache or findings_folder()))
    store.check_writable()
    made, where = Provenance.begin(), question.where
    try:
        answer = plan_capacity(question, question.folder, store, progress, workers, address, target)
    except UserError as error:
        raise UserError(re.sub(r"^plan(?=[: ])", lambda _: where, str(error))) from None
    if target is not None:
        progress("writing the report", 0, None)
        PlanResults(describe_run(question, made), answer).write(target, render)
    return answer


def describe_run(question: Question, made: Provenance) -> dict[str, object]:
    """Describe a plan for ``run.json``: its question, and how it was made."""
    own = {"name": question.name, "seed": question.seed}
    return own | made.describe() | {"question": question.model_dump(mode="json")}
