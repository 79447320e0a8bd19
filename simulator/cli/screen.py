"""A console that shows what it is given and obeys none of it.

Names come from files of strangers: a deployment's may hold a sequence that sets the terminal's
title or moves its cursor, or be ``[red]`` or ``:fire:``. Control characters are shown as Python
writes them, all else as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_OBEYED = re.compile(
    # Control characters but the line's end; what turns the direction of text or breaks its line;
    # what stands for a byte of a file's name that is no text.
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """A text with escapes in place of what a terminal would obey; ends of lines stay.

    >>> visible(f"a{chr(27)}[31mb").replace(chr(92), "/")
    'a/x1b[31mb'
    """
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The same with ends of lines escaped too: for names, and messages of one line."""
    return visible(text).replace("\n", "\\n")


class Screen(Console):
    """A :class:`rich.console.Console` without markup, emoji and highlighting, on which control
    characters of what is printed are visible.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Rich would leave some control characters out."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is printed passes here, tables and bars included; Rich's own control codes stay."""
        for segment in super().render(renderable, options):
            if segment.control or _OBEYED.search(segment.text) is None:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
