"""``moesim report``: the report of results folders, built again from what lies in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from simulator.base.errors import UserError
from simulator.base.partial import whole_file
from simulator.base.plugins import available, load_kind
from simulator.results.run_file import find_writer

_LAB = "lab.pages"


class Report(NamedTuple):
    """A report that was written."""

    file: Path
    """HTML file."""
    verdict: dict[str, Any]
    """Findings: at least ``headline`` and ``reasons``."""


class _Page(NamedTuple):
    html: str
    verdict: dict[str, Any]


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
    page = _build_page(paths)
    name = "report.html" if len(paths) == 1 else "comparison.html"
    target = paths[0] / name if file is None else Path(file)
    with whole_file(target) as partial:
        partial.write_text(page.html, encoding="utf-8")
    return Report(target, page.verdict)


def _build_page(folders: list[Path]) -> _Page:
    """Page of the kind that the folders hold, found out without the engine or pandas."""
    writers = [find_writer(folder) for folder in folders]
    own = {f"moesim {kind}": partial(_build_of_lab, kind) for kind in available(_LAB)}
    for command, build in (_BUILDERS | own).items():
        if command in writers:
            found = folders[writers.index(command)]
            if len(folders) > 1:
                raise UserError(f"{found}: is a folder of {_tell_mixed(command, folders, writers)}")
            return build(found)
    return _build_runs(folders)


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


def _build_runs(folders: list[Path]) -> _Page:
    from simulator.report.page import render
    from simulator.results.folder import merge, read
    from simulator.results.verdict import with_verdict

    results = with_verdict(merge([(folder, read(folder)) for folder in folders]))
    return _Page(render(results), results.run["verdict"])


def _build_plan(folder: Path) -> _Page:
    from simulator.commands.plan import read
    from simulator.report.plan_page import render

    answer, run = read(folder)
    return _Page(
        render(answer, run), {"headline": answer.headline, "reasons": list(answer.reasons)}
    )


def _build_sweep(folder: Path) -> _Page:
    from simulator.report.sweep_page import render
    from simulator.results.sweep import read, tell_sweep

    found = read(folder)
    headline, reasons = tell_sweep(found)
    return _Page(render(found), {"headline": headline, "reasons": reasons})


def _build_executed(folder: Path) -> _Page:
    from simulator.report.execution import render, verdict
    from simulator.results.executed import read

    executed = read(folder)
    found = verdict(executed)
    return _Page(render(executed), {"headline": found.headline, "reasons": found.reasons})


def _build_training(folder: Path) -> _Page:
    from simulator.report.training_pages import render_training_step as render
    from simulator.results.training import read_training

    found = read_training(folder)
    return _Page(render(found), found.run["verdict"])


def _build_training_plan(folder: Path) -> _Page:
    from simulator.report.training_pages import render_training_plan as render
    from simulator.results.training_answer import read_training_answer

    found = read_training_answer(folder)
    return _Page(render(found), found.run["verdict"])


def _build_sparsity(folder: Path) -> _Page:
    from simulator.report.sparsity_page import render
    from simulator.results.sparsity import list_findings, read_sparsity, tell_headline

    found = read_sparsity(folder)
    return _Page(render(found), {"headline": tell_headline(found), "reasons": list_findings(found)})


def _build_of_lab(kind: str, folder: Path) -> _Page:
    return _Page(*load_kind(_LAB, kind).build(folder))


_BUILDERS = {
    "a plan of training": _build_training_plan,
    "moesim plan": _build_plan,
    "a sweep": _build_sweep,
    "moesim execute": _build_executed,
    "a training": _build_training,
    "moesim sparsity": _build_sparsity,
}
"""Builders of the pages that show one folder, by the command that wrote it. The lab's are found: a
file is called as the command."""
