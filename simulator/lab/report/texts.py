"""Short texts of the scoreboard: values with units, shares beside their limits."""

from __future__ import annotations

import math

from simulator.base.formats import UNDEFINED, number, seconds
from simulator.lab.results.judgement import digits_beside


def percent_beside(value: float, *limits: float, digits: int = 1, signed: bool = False) -> str:
    """A share or an error, with as many digits as show on which side of a limit it lies.

    >>> percent_beside(0.0812), percent_beside(0.5, signed=True), percent_beside(12.34)
    ('8.1 %', '+50.0 %', '1,234 %')
    >>> percent_beside(0.25004, 0.25)
    '25.004 %'
    """
    if not math.isfinite(value):
        return UNDEFINED
    digits = digits_beside(value, *limits, digits=0 if abs(value) >= 1 else digits)
    text = f"{100 * value:{'+' if signed else ''},.{digits}f} %"
    return text.replace("-", "\N{MINUS SIGN}")


def amount(value: float, unit: str) -> str:
    """A value with its unit; times in the one that reads best.

    >>> amount(0.0123, "s"), amount(1500.0, "tokens/s")
    ('12.3 ms', '1,500 tokens/s')
    """
    return seconds(value) if unit == "s" else f"{number(value)} {unit}"


def keep_units(text: str) -> str:
    """A text with every number and its percent sign on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")
