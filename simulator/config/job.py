"""Base of the files that commands take, which know where they were read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from pydantic import PrivateAttr

from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import Label, Seed


class Job(Frozen):
    """A scenario, which compares deployments, or a question, which asks for them; the work that is
    put on them is serving or training.
    """

    NOUN: ClassVar[str]
    """Name of this kind of file in errors."""
    FAMILY: ClassVar[str]
    """Folder of the files that ship."""
    TABLES: ClassVar[str]
    """Tables that a file of this kind has, as errors name them."""
    TAKEN: ClassVar[str]
    """Command that takes it, with its verb, in errors."""

    _where: str = PrivateAttr(default="file")
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    name: Label
    """Name in the results; absent = the file's."""
    seed: Seed = 0
    """Seed of all random numbers."""
    notes: Label = ""
    """Remarks in free text."""

    @property
    def where(self) -> str:
        """Path of its file, or what else errors call it."""
        return self._where

    @property
    def folder(self) -> Path:
        """Folder that paths in it are relative to."""
        return self._folder

    @classmethod
    def read(cls, table: dict[str, object], where: str, folder: Path, changed: str = "") -> Self:
        """Validate a table.

        Args:
            where: path of its file, or what else errors call it.
            folder: folder that paths in the table are relative to.
            changed: what errors say behind ``where`` of the keys that were overridden.

        Raises:
            UserError: naming the key, its value and what would be right.
        """
        found = validate(cls, table, f"{where}{changed}")
        found._where, found._folder = where, folder
        return found


def check_names_differ(noun: str, names: Sequence[str]) -> None:
    """Refuse entries of a file that results could not tell apart.

    Args:
        noun: what they are, in the plural.

    Raises:
        ValueError: naming the first name, in the order of the alphabet, that two of them have.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two {noun} are called '{twice[0]}'; give each its own name")
