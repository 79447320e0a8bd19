"""Plotly and the figures of a page as compressed elements, which its script unpacks."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import numpy as np
from markupsafe import Markup

_PLOTLY = Path(__file__).parent / "assets/plotly-cartesian.min.js.gz"
_DIGITS = np.array([code for code in range(ord("#"), ord("y")) if code != ord("<")], np.uint8)
"""The 85 digits: printable, without what could begin a tag or end the element."""


def pack_text(name: str, text: str) -> Markup:
    """A text as an element of a data type, which the browser does not run: gzip in base 85, which
    takes a sixteenth less than base 64.

    Args:
        name: the element's id.
    """
    return _pack(name, gzip.compress(text.encode(), compresslevel=9, mtime=0))


@cache
def pack_plotly() -> Markup:
    """Plotly's script, which is the same on every page."""
    return _pack("plotly", _PLOTLY.read_bytes())


def _pack(name: str, compressed: bytes) -> Markup:
    kind = f'type="application/gzip" id="{name}" data-bytes="{len(compressed)}"'
    return Markup(f"<script {kind}>{_base85(compressed)}</script>")


def _base85(data: bytes) -> str:
    """Five digits, the highest first, for four bytes, filled up with zeros."""
    words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
    digits = np.empty((len(words), 5), dtype=np.uint8)
    for place in reversed(range(5)):
        words, digits[:, place] = np.divmod(words, 85)
    return str(_DIGITS[digits].tobytes(), "ascii")
