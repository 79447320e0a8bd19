"""Texts for people: cut where they are endless, and escaped where they would steer a terminal."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
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


def count_text(count: float) -> str:
    """Write a large number for people, with three digits.

    >>> count_text(46.7e9), count_text(4.48e12), count_text(129e6), count_text(16.0)
    ('46.7B', '4.48T', '129M', '16')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def inline_toml(value: object) -> str:
    """A value as TOML, in one line.

    Raises:
        ValueError: if it is, or has in it, ``None``, which TOML does not know.

    >>> inline_toml({"kind": "zipf", "exponent": 1.2, "flags": [True, 3], "gpt-4.1": float("inf")})
    '{ kind = "zipf", exponent = 1.2, flags = [true, 3], "gpt-4.1" = inf }'
    """
    value = make_plain(value)
    if value is None:
        raise ValueError("None is no value that a file can hold")
    if isinstance(value, dict):
        inner = ", ".join(
            f"{toml_key(str(key))} = {inline_toml(each)}" for key, each in value.items()
        )
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline_toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def toml_key(key: str) -> str:
    """A key as TOML, in quotes where it needs them.

    >>> toml_key("tp"), toml_key("gpt-4.1")
    ('tp', '"gpt-4.1"')
    """
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def make_plain(value: Any) -> Any:
    """A number or an array of NumPy as Python's own; anything else as it is."""
    return value.tolist() if type(value).__module__ == "numpy" else value
