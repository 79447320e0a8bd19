"""``moesim validate``: predictions beside measurements."""

from __future__ import annotations

from pathlib import Path

from simulator.base.progress import Progress, show_nothing
from simulator.results.scores import Scoreboard
from simulator.validation.board import everything


def validate(
    measurements: str | Path | None = None, *, progress: Progress = show_nothing
) -> Scoreboard:
    """Compare predictions with the published figures that ship, and with tables of measurements.

    Args:
        measurements: folder with tables of measurements, which are told by their columns; ``None``
            = only what ships.
        progress: called with the name of a part of the work, how many rows are done, and how many
            there are.

    Raises:
        UserError: if there is no such folder.
    """
    return everything(None if measurements is None else Path(measurements), progress)
