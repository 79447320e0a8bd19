"""``moesim new``: a commented file to begin with, which ``moesim check`` accepts as it is."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from simulator.base.errors import UserError, check_known

FOLDERS = {
    "scenario": Path(),
    "plan": Path(),
    "cluster": Path("cluster_configs"),
    "model": Path("workloads/models"),
}
"""Folder of each kind of file, from the current folder: where its name is found."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_template(kind: str) -> str:
    """The text of a kind of file, with ``NAME`` for its name.

    Raises:
        UserError: if there is no such kind.
    """
    check_known(kind, FOLDERS, "new: unknown kind")
    return (files(__package__) / "templates" / f"{kind}.toml").read_text(encoding="utf-8")


def write_new(kind: str, name: str) -> Path:
    """Write the template of ``kind`` as ``NAME.toml`` where a file of that name is found.

    Raises:
        UserError: if there is no such kind, the name is none, or the file is there already.
    """
    text = read_template(kind)
    stem = name.removesuffix(".toml")
    if not _NAME.fullmatch(stem):
        raise UserError(
            f"new {kind} {name!r}: a name has letters, digits, '-', '_' and '.', such as my-{kind}"
        )
    path = FOLDERS[kind] / f"{stem}.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text.replace("NAME", stem))
    except FileExistsError:
        raise UserError(f"{path}: is there already; choose another name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return path
