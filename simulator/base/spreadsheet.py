"""CSV tables that a spreadsheet shows and does not run.

Excel and its like take a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, and a
formula can send the table away or start a program. Names come from files of strangers, so texts
(headings too) are guarded in the usual way, with an apostrophe in front; numbers, and texts that
are numbers, need no guard. Readers of this package remove it again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20].", re.DOTALL)
"""Beginnings of formulas, wide forms of the signs included, with any apostrophes in front: so that
a text which begins with an apostrophe of its own comes back whole."""
_GUARDED = re.compile(f"'{_FORMULA.pattern}", re.DOTALL)


def guard_text(text: str) -> str:
    """Guard a text, so that no spreadsheet takes it for a formula.

    >>> guard_text("=1+1"), guard_text("'=1+1"), guard_text("-4"), guard_text("H100")
    ("'=1+1", "''=1+1", '-4', 'H100')
    """
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def unguard_text(text: str) -> str:
    """Undo :func:`guard_text`.

    >>> unguard_text("'=1+1"), unguard_text("''=1+1"), unguard_text("'tis")
    ('=1+1', "'=1+1", "'tis")
    """
    return text[1:] if _GUARDED.match(text) and not _is_number(text[1:]) else text


def write_csv(table: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write a table with a line of headings and without its index. Every CSV file with texts in it
    is written here.

    Args:
        options: of :meth:`pandas.DataFrame.to_csv`, such as ``float_format``.
    """
    safe = table.rename(columns=_cell)
    for name, column in table.items():
        if column.dtype.kind not in "biuf":
            safe[_cell(name)] = column.astype(object).map(_cell).astype(object)
    safe.to_csv(path, index=False, **options)


def restore_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Restore the texts of a table that was read from such a file."""
    plain = table.rename(columns=_plain)
    for name, column in table.items():
        if column.dtype.kind not in "biuf":
            plain[_plain(name)] = column.map(_plain)
    return plain


def _plain(value: object) -> object:
    return unguard_text(value) if isinstance(value, str) and value.startswith("'") else value


def _cell(value: object) -> object:
    return guard_text(value) if isinstance(value, str) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
