"""Console that shows what it is given and obeys none of it.

Names come from files of strangers: a deployment's may hold a sequence that sets the terminal's
title or moves its cursor, or be ``[red]`` or ``:fire:``. Control characters are shown as Python
writes them, all else as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from simulator.base.text import visible


class Screen(Console):
    """Console (:class:`rich.console.Console`) without markup, emoji and highlighting, on which
    control characters of what is printed are visible.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def say(self, text: str | Text, style: str = "") -> None:
        """Print a text whose lines are left as long as they are."""
        self.print(text, style=style, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape control characters that Rich would leave in."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Escape everything that is printed, tables and bars included; Rich's own control codes
        stay.
        """
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
