"""What an answer's doubts rest on, one exploration at a time: many short tasks of which all cores
have some until the end.

Each is kept in the store, where the few long tasks that put them together find it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from simulator.base.data import cache_lookups
from simulator.config.capacity import Spare
from simulator.planner.conditions import Conditions
from simulator.planner.confidence import table_of
from simulator.planner.losses import LOST
from simulator.planner.samples import DRAWS
from simulator.planner.screen import Candidate
from simulator.planner.search import work_of
from simulator.planner.whatif import Change, Trials

_TABLE_WORK = 5.0
"""Explorations in a table."""
_OTHER_WORK = 3.0
"""Of one under other conditions, over one as asked: a new step table is filled, or a search begins
further from its end."""
_LEAST_WORK = 0.5


class Task(NamedTuple):
    """A candidate to be explored."""

    candidate: Candidate
    change: Change | None
    """What is other than in the question; ``None`` = the table of what it needs if steps take
    longer."""

    @property
    def work(self) -> float:
        """Roughly how long it takes."""
        if self.change is None:
            return work_of(self.candidate) * _TABLE_WORK
        conditions = self.change.conditions
        other = _OTHER_WORK if conditions._replace(rate=1.0) != Conditions() else 1.0
        return work_of(self.candidate) * other * max(_LEAST_WORK, conditions.rate)


def tasks(
    again: Mapping[Candidate, Iterable[Change]],
    choices: Iterable[Candidate],
    drawn: Iterable[Candidate],
    rates: Iterable[tuple[Candidate, Change]],
) -> list[Task]:
    """All that will be asked for.

    Args:
        again: the changes under which candidates are explored.
        choices: candidates whose tables are wanted.
        drawn: the recommended candidate and the second, of which other samples are wanted; GPUs and
            nodes may be lost of the first.
        rates: candidates at other rates.
    """
    found = [Task(candidate, change) for candidate, changes in again.items() for change in changes]
    found += [Task(candidate, None) for candidate in choices]
    found += [Task(candidate, Change(draw=draw)) for candidate in drawn for draw in DRAWS]
    lost = [Change(spare=spare) for spare in (Spare(), *LOST)]
    found += [Task(candidate, change) for candidate in list(drawn)[:1] for change in lost]
    found += [Task(candidate, change) for candidate, change in rates]
    return list(dict.fromkeys(found))


def explore(trials: Trials, task: Task) -> None:
    """Explore it, for the store."""
    with cache_lookups():
        if task.change is None:
            table_of(trials, task.candidate)
        else:
            trials.find(task.candidate, task.change)
