"""The whole of a plan, from the question to the answer."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from simulator.base.errors import UserError
from simulator.base.progress import Progress, show_nothing
from simulator.config.capacity import Question
from simulator.parallel.workers import Workers
from simulator.planner.answer import make_answer
from simulator.planner.conditions import forget_files
from simulator.planner.search import search
from simulator.planner.store import Store, program
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
        address: of a Ray cluster, on whose nodes they run; all of them see the same files.
        target: the folder that the answer's files will be written to, to which paths in them are
            relative; absent = they are absolute.

    Raises:
        UserError: if the question names what does not exist, or the cluster cannot be used.
    """
    forget_files()  # before workers begin with what it has
    ready = partial(
        _ready, None if address is None else (program(), str(Path.cwd()), str(folder), store.folder)
    )
    with Workers(workers, address, ready) as pool:
        found = search(question, folder, store, tick, pool)
        choices = assess(found, tick, pool)
        pool.shut_down()
        return make_answer(found, choices, target)


def _ready(here: tuple[str, str, str, Path | None] | None) -> None:
    """A worker has imported all this. On a cluster it sees what the first process sees, or
    refuses.
    """
    if here is None:
        return
    digest, current, folder, kept = here
    node = os.uname().nodename
    for place in (current, folder, *([] if kept is None else [str(kept)])):
        if not Path(place).is_dir():
            raise UserError(
                f"--address: node '{node}' has no folder {place}; all nodes must see the same files"
            )
    os.chdir(current)
    if program() != digest:
        raise UserError(
            f"--address: node '{node}' has another version of moesim, or other models or clusters"
        )
