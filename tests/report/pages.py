"""What a page carries, unpacked as its own script does, and the pages of every kind that are made
up.
"""

import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np

MOST_BYTES = 900_000
"""Bytes of a page: what mail servers and chat windows take without a word, and Plotly alone is
0.6 MB of it."""
FEW_DEPLOYMENTS = 4
"""Deployments that a page of at most :data:`MOST_BYTES` compares."""
BYTES_OF_A_DEPLOYMENT = 60_000
"""Bytes that each further one adds: tables, curves, maps, and its explanation with its limits."""
DIGITS = "".join(chr(code) for code in range(ord("#"), ord("y")) if chr(code) != "<")


def unpacked(page, name):
    """The text of a packed element."""
    found = re.search(
        rf'<script type="application/gzip" id="{name}" data-bytes="(\d+)">([^<]*)</script>', page
    )
    num_bytes, packed = found.groups()  # once: each look at a group copies it whole
    value_of = np.full(128, 85, dtype=np.int64)
    value_of[np.frombuffer(DIGITS.encode(), dtype=np.uint8)] = np.arange(85)
    digits = value_of[np.frombuffer(packed.encode("ascii"), dtype=np.uint8)].reshape(-1, 5)
    assert digits.max() < 85
    words = digits @ 85 ** np.arange(4, -1, -1)
    data = words.astype(">u4").tobytes()
    return gzip.decompress(data[: int(num_bytes)]).decode()


def payload_of(page):
    """What the page's script draws."""
    return json.loads(unpacked(page, "payload"))


class Cells(HTMLParser):
    """The cells of metrics on a page, and every text."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if "data-metric" in dict(attrs):
            self.cells.append(dict(attrs))

    def handle_data(self, data):
        self.words.append(data)
