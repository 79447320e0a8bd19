"""``python -m tests.golden.moved BASE``: which numbers moved since a revision, golden and of every
validation group.

The golden files of BASE are compared with what is computed now. Validation runs twice: with the
program and data of BASE in a temporary checkout, and with those of this one, on the published
figures that ship and the tables of MEASUREMENTS.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.golden.collect import (
    TOLERANCE,
    list_cases,
    number_kinds,
    read_sums,
    read_table,
)

ROOT = Path(__file__).parents[2]
GROUP = ["suite", "quantity", "group"]
ERRORS = ["rows", "median", "mean", "p90", "bias", "unsupported", "extrapolated", "covered"]


def run_git(*arguments: str) -> str:
    """What git prints."""
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout


def read_base(base: str, file: Path, index: int | list[str]) -> pd.DataFrame | None:
    """A golden file as BASE has it; ``None`` where it has none of this kind."""
    try:
        text = run_git("show", f"{base}:{file.relative_to(ROOT)}")
        return read_table(io.StringIO(text), index)
    except (subprocess.CalledProcessError, ValueError, KeyError):
        return None


def print_moves(
    title: str, before: pd.DataFrame | None, after: pd.DataFrame, tolerance: float
) -> None:
    """What is new, what is gone, and every number that moved by more than ``tolerance`` of
    itself.
    """
    if before is None:
        print(f"{title}: the base has none to compare with\n")
        return
    both, columns = (
        after.index.intersection(before.index),
        after.columns.intersection(before.columns),
    )
    old, new = before.loc[both, columns], after.loc[both, columns]
    digests = [column for column in columns if column.endswith("_sha")]
    changes = [list(_changes(old.loc[name], new.loc[name], tolerance)) for name in both]
    same = (
        f"; {int((new[digests] == old[digests]).all(axis=1).sum())} are the same to the last digit"
        if digests
        else ""
    )
    print(f"{title}: {sum(map(bool, changes))} of {len(both)} moved{same}")
    for what, names in (
        ("new", after.index.difference(before.index)),
        ("gone", before.index.difference(after.index)),
    ):
        for name in names:
            print(f"  {what}: {_text(name)}")
    for name, own in zip(both, changes, strict=True):
        if own:
            print(f"  {_text(name)}: {', '.join(own)}")
    print()


def _changes(old: pd.Series, new: pd.Series, tolerance: float) -> Iterator[str]:
    """The columns of one row that moved, with both values."""
    for column in old.index:
        before, after = old[column], new[column]
        if column.endswith("_sha") or before == after or (pd.isna(before) and pd.isna(after)):
            continue
        if column.endswith("_sums"):
            if (count := _count_moves(before, after, tolerance)) is not None:
                yield f"{count} columns of {column.removesuffix('_sums')}"
        elif isinstance(before, str) or isinstance(after, str) or pd.isna(before) or pd.isna(after):
            yield f"{column} {before} -> {after}"
        elif abs(after - before) > tolerance * abs(before) + 1e-15:
            yield f"{column} {before:.6g} -> {after:.6g}" + (
                f" ({after / before - 1:+.2%})" if before else ""
            )


def _count_moves(before: str, after: str, tolerance: float) -> int | str | None:
    """How many sums moved; ``None`` where none did, and ``"the"`` where there are other columns."""
    old, new = read_sums(before), read_sums(after)
    if old.shape != new.shape:
        return "the"
    return int((np.abs(new - old) > tolerance * np.abs(old) + 1e-15).sum()) or None


def _text(name: Any) -> str:
    return " / ".join(map(str, name if isinstance(name, tuple) else [name]))


def validate(folder: Path, measurements: Path | None) -> pd.DataFrame:
    """The errors of every group, found by the program in ``folder``."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "simulator", "validate", "--json", "--out", f"{out}/board"]
        command += ["--measurements", str(measurements)] if measurements else []
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    scores = pd.DataFrame(json.loads(done.stdout)["scores"]).set_index(GROUP)
    return scores[scores.columns.intersection(ERRORS)]


def main(base: str, measurements: Path | None) -> None:
    """Compare and print."""
    try:
        run_git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    except subprocess.CalledProcessError:
        sys.exit(f"{base}: is no revision of this repository")
    for file, index, rows in number_kinds(list_cases(), os.cpu_count() or 1):
        print_moves(f"golden {file.stem}", read_base(base, file, index), rows, TOLERANCE)
    if measurements is None:
        print(
            "no folder of measurements (MEASUREMENTS=DIR): validation on the published "
            "figures that ship only"
        )
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "base"
        run_git("worktree", "add", "--detach", str(checkout), base)
        try:
            before = validate(checkout, measurements)
        finally:
            run_git("worktree", "remove", "--force", str(checkout))
    print_moves("validation groups", before, validate(ROOT, measurements), 0.0)


if __name__ == "__main__":
    given = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    main(sys.argv[1], given if given is not None and given.is_dir() else None)
