"""Streams of random numbers by purpose, so that one use of chance never moves another's."""

from __future__ import annotations

import zlib

import numpy as np


def open_stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Open the random stream of one purpose in a run of one seed.

    Runs of one seed share streams (common random numbers), in whatever order and on whatever
    process they are opened.

    Args:
        purpose: names the use, such as ``"arrivals"``.
        numbers: which of many uses of one purpose, such as a table's entry; at least 0.

    >>> open_stream(7, "arrivals").random() == open_stream(7, "arrivals").random()
    True
    >>> open_stream(7, "steps", 1).random() == open_stream(7, "steps", 2).random()
    False
    """
    which = [*numbers, len(numbers)] if numbers else []  # numpy takes no notice of zeros at the end
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *which])
