"""What a page carries compressed, and its script unpacks: Plotly, which is 5 MB, and what is drawn
with it.
"""

from __future__ import annotations

import gzip
from functools import cache

import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_DIGITS = np.array([code for code in range(ord("#"), ord("y")) if code != ord("<")], np.uint8)
"""The 85 digits: printable, without what could begin a tag or end the element."""


def packed(name: str, text: str) -> Markup:
    """A text as an element of a data type, which the browser does not run: gzip in base 85, which
    takes a sixteenth less than base 64.

    Args:
        name: the element's id.
    """
    compressed = gzip.compress(text.encode(), compresslevel=6, mtime=0)
    kind = f'type="application/gzip" id="{name}" data-bytes="{len(compressed)}"'
    return Markup(f"<script {kind}>{_base85(compressed)}</script>")


@cache
def packed_plotly() -> Markup:
    """Plotly's script, which is the same on every page."""
    return packed("plotly", get_plotlyjs())


def _base85(data: bytes) -> str:
    """Five digits, the highest first, for four bytes, filled up with zeros."""
    words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
    digits = np.empty((len(words), 5), dtype=np.uint8)
    for place in reversed(range(5)):
        words, digits[:, place] = np.divmod(words, 85)
    return str(_DIGITS[digits].tobytes(), "ascii")
