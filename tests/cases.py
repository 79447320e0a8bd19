"""How many cases a law is tried on.

``make test`` tries the same cases each time, drawn from the test's own name: what fails there was
broken by the change. ``make soak`` tries ten times as many, or as many as a law says that takes too
long for that, and is where cases nobody has seen are met: those of Hypothesis are drawn from a seed
(``make soak SEED=2``), those of :func:`seeds` go on from the last number.
"""

import pytest
from hypothesis import settings

SOAK = 10
"""Cases of ``make soak`` for one of ``make test``."""
_CASES = 100
"""Of a law that asks for no number of its own, in ``make test``."""

# No test asserts a time: the first example of a law compiles, and the machine may be busy.
settings.register_profile(
    "test", deadline=None, max_examples=_CASES, derandomize=True, print_blob=True
)
settings.register_profile(
    "soak",
    deadline=None,
    max_examples=SOAK * _CASES,
    derandomize=False,  # as Hypothesis has it where CI is set
    database=None,
    print_blob=True,
)
settings.load_profile("test")


def times(number, soak=None):
    """So many in ``make test``, ten times as many, or ``soak``, in ``make soak``."""
    if settings.default.max_examples == _CASES:
        return number
    return SOAK * number if soak is None else soak


def cases(number, soak=None):
    """Settings of a law that is tried on so many cases in ``make test``."""
    return settings(max_examples=times(number, soak))


def seeds(first, number, soak=None):
    """Marks of a law that draws a case by its number: how many ``make test`` tries, from ``first``
    on.
    """

    def mark(law):
        every = pytest.mark.parametrize("seed", range(first, first + times(number, soak)))
        return pytest.mark.seeded(every(law))

    return mark
