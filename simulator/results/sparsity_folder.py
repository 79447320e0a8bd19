"""Folder of ``moesim sparsity``: ``run.json`` with its numbers, and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from simulator.base.partial import whole_file
from simulator.results.provenance import Provenance
from simulator.results.run_file import SCHEMA, read_run, refuse_damaged
from simulator.results.sparsity import SparsityResults

_KEY = "sparsity"


def write_sparsity(
    results: SparsityResults,
    folder: Path,
    made: Provenance,
    render: Callable[[SparsityResults], str],
) -> None:
    """Write the folder, each file whole.

    Args:
        render: makes the page.
    """
    run = {"schema": SCHEMA, _KEY: asdict(results), **made.describe()}
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"run.json": json.dumps(run, indent=1) + "\n", "report.html": render(results)}
    for name, text in texts.items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def read_sparsity(folder: Path) -> SparsityResults:
    """Read what :func:`write_sparsity` wrote.

    Raises:
        UserError: if the folder is not whole, or another version wrote it in another schema.
    """
    with refuse_damaged(folder):
        return TypeAdapter(SparsityResults).validate_python(read_run(folder)[_KEY], strict=False)
