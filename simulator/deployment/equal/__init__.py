"""Measures in which a model and its counterpart are equal, one a file: parameters, quality,
memory, cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from simulator.config.model import ModelSpec


class Measure(NamedTuple):
    """Measure that a counterpart must have as much of as its reference."""

    words: str
    """Name for people: ``total parameters``."""
    of_model: Callable[[ModelSpec], float]
    """Function from a model to its value, which grows with the model."""
    value_text: Callable[[float], str]
    """Function that writes a value with its unit."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader must know, such as where a law was asked beyond its fit."""


class Equality(Protocol):
    """Measure of one kind."""

    def make_measure(self, reference: ModelSpec, where: str) -> Measure:
        """Measure for the counterparts of ``reference``.

        Raises:
            UserError: if a name among its keys is unknown, or the reference cannot be measured.
        """
