"""File ``run.json`` of every results folder: its provenance and schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulator import __version__
from simulator.base.errors import UserError
from simulator.base.reading import read_bytes

SCHEMA = 12
"""Schema of the folders that this version writes, and the only one that it reads: it counts up
whenever a file, a column or a key that a reader needs is added, renamed or given another meaning.
Folders that name none have schema 1."""
_FILE = "run.json"
_KEY = "schema"
_WRITERS = {"plan.json": "moesim plan", "sweep.csv": "a sweep", "scores.csv": "moesim validate"}
"""Commands other than ``moesim run``, by a file that only their folders have."""
_TELLING_KEYS = {
    "machine": "moesim execute",
    "training_question": "a plan of training",
    "training": "a training",
    "sparsity": "moesim sparsity",
    "claims": "moesim claims",
}
"""Others by a key of ``run.json``."""


def find_writer(folder: Path) -> str:
    """Command whose results folder this is: ``moesim plan``, ``a sweep``, ``moesim validate``,
    ``moesim execute``, whose ``run.json`` names a machine, a training or a plan of one,
    ``moesim sparsity``, or ``moesim run`` where nothing tells.
    """
    for file, command in _WRITERS.items():
        if (folder / file).is_file():
            return command
    try:
        run = json.loads(read_bytes(folder / _FILE))
    except (UserError, ValueError):
        return "moesim run"
    if not isinstance(run, dict):
        return "moesim run"
    return next((writer for key, writer in _TELLING_KEYS.items() if key in run), "moesim run")


@contextmanager
def refuse_damaged(folder: Path, what: str = "results folder") -> Iterator[None]:
    """Turn an error of reading a folder into one that says that it is not whole.

    Args:
        what: what the folder is, in the error.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: is not a whole {what}: {reason}") from error


def write_run(run: dict[str, Any], folder: Path) -> None:
    """Write ``run.json``.

    Raises:
        ValueError: if it holds a number that JSON does not have.
    """
    text = json.dumps({_KEY: SCHEMA, **run}, indent=1, allow_nan=False)
    (folder / _FILE).write_text(text + "\n", encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """Read the table that :func:`write_run` was given.

    Raises:
        UserError: if it cannot be read, or another version wrote it in another schema.
        ValueError, TypeError: if it is no JSON object.
    """
    run = json.loads(read_bytes(folder / _FILE))
    if not isinstance(run, dict):
        raise TypeError(f"{_FILE} holds no object")
    written = run.pop(_KEY, 1)
    if written != SCHEMA:
        raise UserError(f"{folder}: {_describe_other(written, run)}")
    return run


def _describe_other(written: object, run: dict[str, Any]) -> str:
    """Describe which version wrote another schema, which schema is read now, and the remedy."""
    versions = run.get("versions")
    writer = versions.get("moesim") if isinstance(versions, dict) else None
    revision = f" (revision {run['revision']})" if run.get("revision") else ""
    by = f"moesim {writer}{revision}" if writer else "another version of moesim"
    again = f" ({run['command']})" if run.get("command") else ""
    return (
        f"{by} wrote it in schema {written}, and this moesim {__version__} reads schema {SCHEMA}: "
        f"make it again{again}, or read it with the version that wrote it"
    )
