"""HTML that cannot forget to escape: text is escaped when it becomes a child of a tag, tags are
not.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from markupsafe import Markup

__all__ = ["Markup", "join", "tag", "text"]


def text(child: str) -> Markup:
    """A child as HTML."""
    return child if isinstance(child, Markup) else Markup(html.escape(child))


def join(children: Iterable[str], separator: str = "") -> Markup:
    """Children one after the other."""
    return Markup(separator.join(text(child) for child in children))


def tag(name: str, /, *children: str, **attributes: str | int | bool) -> Markup:
    """An element.

    Args:
        attributes: ``class_`` for ``class``, ``data_metric`` for ``data-metric``; False leaves one
            out.

    >>> tag("p", "a < b", tag("br"), class_="note", data_x=1)
    '<p class="note" data-x="1">a &lt; b<br></p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not False
    )
    if name in ("br", "meta", "wbr"):
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")
