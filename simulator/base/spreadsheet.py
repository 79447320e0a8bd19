"""Tables as CSV that a spreadsheet shows and does not run.

Excel and its like take a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, and a
formula can send the table away or start a program. Names come from files of strangers, so texts
(headings too) are guarded as the spreadsheets' users do it, with an apostrophe in front; numbers
are none of that, nor are texts that are numbers. Readers of this package take it off again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20].", re.DOTALL)
"""How a formula begins, wide forms of the signs included, or what a guard has been put before: so
that a text which begins with an apostrophe of its own comes back whole."""
_GUARDED = re.compile(f"'{_FORMULA.pattern}", re.DOTALL)


def guarded(text: str) -> str:
    """A text that no spreadsheet takes for a formula.

    >>> guarded("=1+1"), guarded("'=1+1"), guarded("-4"), guarded("H100")
    ("'=1+1", "''=1+1", '-4', 'H100')
    """
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def unguarded(text: str) -> str:
    """The text that :func:`guarded` was given.

    >>> unguarded("'=1+1"), unguarded("''=1+1"), unguarded("'tis")
    ('=1+1', "'=1+1", "'tis")
    """
    return text[1:] if _GUARDED.match(text) and not _is_number(text[1:]) else text


def write_csv(table: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write a table with a line of headings and without its index; every CSV file with texts in it
    is written here.

    Args:
        options: of :meth:`pandas.DataFrame.to_csv`, such as ``float_format``.
    """
    safe = table.rename(columns=_cell)
    for name, column in table.items():
        if column.dtype.kind not in "biuf":
            safe[_cell(name)] = column.astype(object).map(_cell).astype(object)
    safe.to_csv(path, index=False, **options)


def with_texts(table: pd.DataFrame) -> pd.DataFrame:
    """A table that was read from such a file, with its texts as they were."""
    plain = table.rename(columns=_plain)
    for name, column in table.items():
        if column.dtype.kind not in "biuf":
            plain[_plain(name)] = column.map(_plain)
    return plain


def _plain(value: Any) -> Any:
    return unguarded(value) if isinstance(value, str) and value.startswith("'") else value


def _cell(value: Any) -> Any:
    return guarded(value) if isinstance(value, str) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
