"""The whole of a plan, from the question to the answer."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from simulator.planner.answer import summary
from simulator.planner.doubts import doubts
from simulator.planner.search import Tick, search
from simulator.planner.store import Store
from simulator.spec.planning import Question


def plan(
    question: Question, folder: Path, store: Store, tick: Tick = lambda *_: None, workers: int | None = None
) -> tuple[dict[str, Any], float]:
    """The answer, which is the same for the same question, seed and version; and the seconds that it took.

    Args:
        folder: what paths in the question are relative to.
        store: where finished simulations are kept, and looked for.
        workers: processes; by default one a core.

    Raises:
        UserError: if the question names what does not exist.
    """
    began = time.perf_counter()
    found = search(question, folder, store, tick, workers)
    answer = summary(found, doubts(found, store, tick, workers))
    return _finite(answer), time.perf_counter() - began


def _finite(value: Any) -> Any:
    """The value with ``None`` for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
