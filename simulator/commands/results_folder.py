"""Finished runs as folders: written with their report, and read back."""

from __future__ import annotations

from pathlib import Path

from simulator.report.page import render
from simulator.results import folder as folders
from simulator.results.folder import Results


def write_results(results: Results, folder: str | Path) -> Path:
    """Write a results folder with its tables and its report, as ``moesim run`` does; an earlier run
    in it is replaced.

    Returns:
        The report, ``report.html`` in the folder.

    Raises:
        UserError: if the folder holds something else, or cannot be written; nothing is left behind
            then.
    """
    target = Path(folder)
    folders.write(results, target, render)
    return target / "report.html"


def load_results(folder: str | Path) -> Results:
    """Read a results folder of ``moesim run`` or :func:`write_results`.

    Raises:
        UserError: if it is not one, a file is missing, or another version wrote it in another
            schema.
    """
    return folders.read(Path(folder))
