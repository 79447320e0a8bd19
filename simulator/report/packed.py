"""Plotly and the figures of a page as compressed elements, which its script unpacks."""

from __future__ import annotations

import base64
import gzip
import string
from functools import cache
from pathlib import Path

from markupsafe import Markup

_PLOTLY = Path(__file__).parent / "assets/plotly-cartesian.min.js.gz"
_DIGITS = bytes(code for code in range(ord("#"), ord("y")) if code != ord("<"))
"""The 85 digits: printable, without what could begin a tag or end the element."""
_PYTHONS = f"{string.digits}{string.ascii_letters.swapcase()}!#$%&()*+-;<=>?@^_`{{|}}~".encode()
"""The digits of :func:`base64.b85encode`."""


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
    digits = base64.b85encode(compressed, pad=True).translate(bytes.maketrans(_PYTHONS, _DIGITS))
    return Markup(f"<script {kind}>{digits.decode()}</script>")
