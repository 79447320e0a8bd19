"""``moesim report``: the report of results folders, built again from what lies in them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.base.errors import UserError
from simulator.base.partial import whole_file
from simulator.base.plugins import available, load_kind
from simulator.results.results_folder import ResultsFolder, Verdict, find_writer

if TYPE_CHECKING:
    from simulator.results.folder import Results

_LAB = "lab.pages"


class Report(NamedTuple):
    """A report that was written."""

    file: Path
    """HTML file."""
    verdict: Verdict


def build_report(
    folders: str | Path | Sequence[str | Path], file: str | Path | None = None
) -> Report:
    """Build the report again from results folders of :func:`run`, or from one of :func:`sweep`,
    :func:`execute` or :func:`plan`.

    Args:
        folders: results folders; several runs of one workload are compared in one report.
        file: HTML file to write; ``None`` = ``report.html`` (of several folders:
            ``comparison.html``) in the first folder.

    Raises:
        UserError: if a folder holds no results, they cannot be compared, or the file cannot be
            written.
    """
    paths = [Path(one) for one in ([folders] if isinstance(folders, str | Path) else folders)]
    if not paths:
        raise UserError("name at least one results folder")
    page, verdict = _build_page(paths)
    name = "report.html" if len(paths) == 1 else "comparison.html"
    target = paths[0] / name if file is None else Path(file)
    with whole_file(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return Report(target, verdict)


def write_results(results: ResultsFolder, folder: str | Path) -> Path:
    """Write a results folder with its tables and its report, as the command does; an earlier one in
    it is replaced.

    Returns:
        The report, ``report.html`` in the folder.

    Raises:
        UserError: if the folder holds something else, or cannot be written; nothing is left behind
            then.
    """
    target = Path(folder)
    results.write(target, render)
    return target / "report.html"


def render(results: ResultsFolder) -> str:
    """The page of results of any kind, as one HTML document."""
    _, page = _load_kind(results.writer)
    return page(results)


def load_results(folder: str | Path) -> Results:
    """Read a results folder of ``moesim run`` or :func:`write_results`.

    Raises:
        UserError: if it is not one, a file is missing, or another version wrote it in another
            schema.
    """
    from simulator.results.folder import Results

    return Results.read(Path(folder))


def _build_page(folders: list[Path]) -> tuple[str, Verdict]:
    """Page and verdict of the kind that the folders hold."""
    writers = [find_writer(folder) for folder in folders]
    command = next((one for one in writers if one != "moesim run"), "moesim run")
    kind, page = _load_kind(command)
    if command == "moesim run":
        from simulator.results.folder import merge
        from simulator.results.verdict import with_verdict

        run = with_verdict(merge([(folder, load_results(folder)) for folder in folders]))
        return page(run), run.verdict
    first = folders[writers.index(command)]
    if len(folders) > 1:
        raise UserError(f"{first}: is a folder of {_tell_mixed(command, folders, writers)}")
    found = kind.read(first)
    return page(found), found.verdict


def _tell_mixed(command: str, folders: list[Path], writers: list[str]) -> str:
    if command == "a sweep":
        return "a sweep; name it alone, or folders of its points"
    runs = [
        folder
        for folder, writer in zip(folders, writers, strict=True)
        if writer != "moesim execute"
    ]
    mixed = f", and {runs[0]} of moesim run" if command == "moesim execute" and runs else ""
    return f"{command}{mixed}; name one such folder alone, or several of moesim run"


_KINDS = {
    "moesim run": ("results.folder.Results", "report.page.render"),
    "moesim plan": ("results.answer.folder.PlanResults", "report.plan_page.render"),
    "moesim execute": ("results.executed.Executed", "report.execution.render"),
    "moesim sparsity": ("results.sparsity.SparsityFolder", "report.sparsity_page.render"),
    "a sweep": ("results.sweep.Sweep", "report.sweep_page.render"),
    "a training": (
        "results.training.TrainingResults",
        "report.training_pages.render_training_step",
    ),
    "a plan of training": (
        "results.training_answer.TrainingAnswer",
        "report.training_pages.render_training_plan",
    ),
}
"""Class and page of each kind of results folder, by the command that writes it."""


def _load_kind(command: str) -> tuple[type[ResultsFolder], Callable[[Any], str]]:
    """Import a kind of folder; the lab's are found, in a file that is called as the command."""
    name = command.removeprefix("moesim ")
    if name in available(_LAB):
        found = load_kind(_LAB, name)
        return found.Results, found.render
    kind, page = (_import_name(path) for path in _KINDS.get(command, _KINDS["moesim run"]))
    return kind, page


def _import_name(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"simulator.{module}"), name)
