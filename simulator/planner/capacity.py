"""The whole of a plan, from the question to the answer."""

from __future__ import annotations

from pathlib import Path

from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Question
from simulator.parallel.workers import Workers
from simulator.planner.answer import make_answer
from simulator.planner.conditions import forget_files
from simulator.planner.search import search
from simulator.planner.store import Store
from simulator.planner.uncertainty.assessment import assess
from simulator.results.answer import Answer


def plan_capacity(
    question: Question,
    folder: Path,
    store: Store,
    tick: Progress = show_nothing,
    workers: int | None = None,
    address: str | None = None,
    target: Path | None = None,
) -> Answer:
    """The answer, which is the same for the same question, seed and version.

    Args:
        folder: what paths in the question are relative to.
        store: where finished simulations are kept, and looked for.
        workers: processes; by default one a core.
        address: of a Ray cluster, on whose nodes they run.
        target: the folder that the answer's files will be written to, to which paths in them are
            relative; absent = they are absolute.

    Raises:
        UserError: if the question names what does not exist, or the cluster cannot be used.
    """
    forget_files()  # before workers begin with what it has
    with Workers(workers, address, _ready) as pool:
        found = search(question, folder, store, tick, pool)
        choices = assess(found, tick, pool)
        pool.shut_down()
        return make_answer(found, choices, target)


def _ready() -> None:
    """A worker that has this function has imported what a search needs."""
