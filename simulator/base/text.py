"""Texts for people: cut where they are endless, and escaped where they would steer a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

_OBEYED = re.compile(
    # Control characters but the line's end; what turns the direction of text or breaks its line;
    # what stands for a byte of a file's name that is no text.
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shorten(text: str, most: int = 60) -> str:
    """Shorten a text to its beginning and end where it has more than ``most`` characters.

    >>> shorten("a" * 20 + "b" * 20, 15)
    'aaaaaaaa...bbbb'
    """
    if len(text) <= most:
        return text
    end = (most - 3) // 3
    return f"{text[: most - 3 - end]}...{text[-end:]}"


def visible(text: str) -> str:
    """Escape whatever a terminal would obey; ends of lines stay.

    >>> visible(f"a{chr(27)}[31mb").replace(chr(92), "/")
    'a/x1b[31mb'
    """
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Escape whatever a terminal would obey, and ends of lines, in a name or a message
    of one line.
    """
    return visible(text).replace("\n", "\\n")


def first_line(error: BaseException) -> str:
    r"""First line of an error's message, without the trace that some libraries append; its type if
    the message is empty.

    >>> first_line(ValueError("no such port\n  File ...")), first_line(ValueError())
    ('no such port', 'ValueError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def inline_toml(value: Any) -> str:
    """A value as TOML, in one line.

    >>> inline_toml({"kind": "zipf", "exponent": 1.2, "flags": [True, 3]})
    '{ kind = "zipf", exponent = 1.2, flags = [true, 3] }'
    """
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {inline_toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=_make_plain)


def _make_plain(value: Any) -> Any:
    """A number of NumPy as one of Python; anything else as a text, such as a path."""
    return value.item() if hasattr(value, "item") else str(value)
