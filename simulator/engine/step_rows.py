"""Log of steps as tables: rows that compiled code fills, and tables made of those whose steps have
ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from simulator.engine.pool import PoolState
from simulator.engine.state import Clock, Floats
from simulator.engine.step_log import DECODES, LOG_COLUMNS, NUM_COLUMNS, POOL, REPLICA, ROW_STEPS
from simulator.results.tables import ADMISSION_LIMITS, STEP_COLUMNS

_LOG_ROWS = 8192
"""Rows of one part of the log."""
HELD_ROWS = 1 << 17
"""Rows held in memory before they are stored."""
COST_COLUMNS = ("load_imbalance", "read_bytes", "dropped_pairs")
"""Columns of the log that are not in the table of steps."""
_COUNTS = ("prefill_tokens", "decode_tokens", "running", "waiting")


class StepLog:
    """Rows of steps in order of their forming, those of a replica in order of their start."""

    def __init__(self, put_away: Callable[[list[Floats]], None]) -> None:
        """Start an empty log.

        Args:
            put_away: stores parts of the log whose steps have ended, none before an earlier one.
        """
        self.rows = np.empty((_LOG_ROWS, NUM_COLUMNS))
        """Rows of the latest steps, and free ones."""
        self.num_taken = 0
        """Number of ``rows`` that are taken."""
        self._put_away = put_away
        self._full: list[Floats] = []
        self._tokens_away = np.zeros((2, 2))

    @property
    def is_full(self) -> bool:
        """Whether no row is left."""
        return self.num_taken == len(self.rows)

    def go_on(self, now_s: float, clocks: Sequence[Clock]) -> None:
        """Begin another part behind a full one, and store what has ended by now, if it is much.

        Args:
            clocks: of all pools, which name rows that later steps may join or change.
        """
        self._begin_part(clocks)
        if sum(map(len, self._full)) >= HELD_ROWS:
            has_ended = [bool((part[:, 0] + part[:, 1] < now_s).all()) for part in self._full]
            count = len(has_ended) if all(has_ended) else has_ended.index(False)
            if count:
                for place in range(2):
                    self._tokens_away[place] += _count_tokens(self._full[:count], place)
                self._put_away(self._full[:count])
                del self._full[:count]

    def _begin_part(self, clocks: Sequence[Clock]) -> None:
        """Move the rows that clocks refer to into another part, so that which steps share a row
        depends on their replica alone.
        """
        full = self.rows
        named = [clock.counts[name] for clock in clocks for name in ("run_row", "last_row")]
        rows = np.unique(np.concatenate([field.ravel() for field in named]))
        carried = rows[rows >= 0]
        self.rows, self.num_taken = np.empty((len(carried) + _LOG_ROWS, NUM_COLUMNS)), len(carried)
        self.rows[: len(carried)] = full[carried]
        place_of = np.full(len(full) + 1, -1)
        place_of[carried] = np.arange(len(carried))
        for field in named:
            field[:] = place_of[field]
        # Steps that ranks take write into their rows, which no clock names: no copy of those.
        self._full.append(np.delete(full, carried, axis=0) if len(carried) else full)

    def count_tokens(self, place: int, drafted: int) -> int:
        """Count the tokens that the steps of a pool have computed.

        Args:
            drafted: draft tokens that are computed with each decode token.
        """
        held = _count_tokens([*self._full, self.rows[: self.num_taken]], place)
        prefilled, decodes = self._tokens_away[place] + held
        return int(prefilled + decodes * (1 + drafted))

    def list_rows(self, place: int, since_s: float) -> Floats:
        """List the rows that are held of a pool's steps that end after some time."""
        parts = [part for part in (*self._full, self.rows[: self.num_taken]) if len(part)]
        rows = np.concatenate([part[part[:, POOL] == place] for part in parts] or [self.rows[:0]])
        found: Floats = rows[rows[:, 0] + rows[:, 1] > since_s]
        return found

    def end(self) -> None:
        """Store all that is left."""
        self._put_away([*self._full, self.rows[: self.num_taken]])
        self._full.clear()


def _count_tokens(parts: Sequence[Floats], place: int) -> Floats:
    """Count the prompt tokens of a pool's steps, and the sequences that decode in them, ``[2]``."""
    columns = [LOG_COLUMNS.index("prefill_tokens"), DECODES]
    counts = [part[part[:, POOL] == place][:, columns].sum(axis=0) for part in parts]
    found: Floats = np.sum(counts, axis=0)
    return found


def read_steps(
    parts: Sequence[Floats], pools: Mapping[str, PoolState]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Convert parts of the log into a table of ``STEP_COLUMNS`` without the deployment, replica
    after replica, and one of :data:`COST_COLUMNS` beside it.
    """
    log = np.concatenate(parts)
    replica, names = log[:, REPLICA].astype(np.int64), ["both"]
    if len(pools) > 1:  # in the log the pool comes first that requests come to first
        names = ["prefill", "decode"]
        replica += np.where(log[:, POOL] == 0, pools["decode"].num_replicas, 0)
    order = np.argsort(replica, kind="stable")
    rows = slice(None) if (order == np.arange(len(order))).all() else order
    limits, of_pool = log[rows, LOG_COLUMNS.index("limited_by")], log[rows, POOL]
    columns: dict[str, object] = {
        "replica": replica[rows],
        "pool": pd.Categorical.from_codes(of_pool.astype("int8"), pd.Index(names)),
        "num_steps": log[rows, ROW_STEPS].astype(np.int64),
        "decodes": log[rows, DECODES].astype(np.int64),
        "limited_by": pd.Categorical.from_codes(limits.astype("int8"), pd.Index(ADMISSION_LIMITS)),
    }
    # A column at a time, so that a long log is not held twice.
    for place, column in enumerate(LOG_COLUMNS):
        if column not in columns:
            kind = np.int64 if column in _COUNTS else np.float64
            columns[column] = np.array(log[rows, place], dtype=kind)
    own = [column for column in STEP_COLUMNS if column != "deployment"]
    steps, costs = (
        pd.DataFrame({column: columns[column] for column in part}, copy=False)
        for part in (own, COST_COLUMNS)
    )
    return steps, costs
