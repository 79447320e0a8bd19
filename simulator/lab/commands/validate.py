"""``moesim validate``: predictions beside measurements."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from simulator.base.partial import whole_file
from simulator.base.progress import Progress, show_nothing
from simulator.base.reading import read_text
from simulator.lab.calibration.left_out import answer_left_out
from simulator.lab.report.scoreboard import render
from simulator.lab.results.scores import Scoreboard
from simulator.lab.validation.accuracy import append_history, read_history, update_document
from simulator.lab.validation.board import everything


def validate(
    measurements: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    accuracy: str | Path | None = None,
    history: str | Path | None = None,
    progress: Progress = show_nothing,
) -> Scoreboard:
    """Compare predictions with the published figures that ship, and with tables of measurements.

    Args:
        measurements: folder with tables of measurements, which are told by their columns; ``None``
            = only what ships.
        folder: results folder to write, with the scoreboard page; ``None`` = none.
        accuracy: Markdown document to write the accuracy into, with whole models, GPUs and releases
            left out of the fits in turn, which takes minutes: in one that is there, only its tables
            are replaced; ``None`` = none.
        history: JSON Lines file to append date, revision and accuracy to, all of which the
            scoreboard then has; ``None`` = none.
        progress: called with the name of a part of the work, how many rows are done, and how many
            there are.

    Raises:
        UserError: if there is no folder of measurements, or something cannot be written.
    """
    source, target, document, past = (
        None if path is None else Path(path) for path in (measurements, folder, accuracy, history)
    )
    if target is not None:
        Scoreboard.check_writable(target)
    if past is not None:
        read_history(past)  # a damaged one is told before minutes of work
    with ExitStack() as files:
        partial = document and files.enter_context(whole_file(document))
        board = everything(source, progress)
        if document is not None:
            tables = [
                (table["suite"], table["source"])
                for table in board.run["tables"]
                if table["in_sample"]
            ]
            board = replace(board, unseen=answer_left_out(tables, progress))
        if past is not None:
            append_history(past, board)
            board = replace(board, history=read_history(past))
        if target is not None:
            progress("writing the report", 0, None)
            board.write(target, render)
        if document and partial:
            old = read_text(document) if document.exists() else ""
            partial.write_text(update_document(old, board), encoding="utf-8")
    return board
