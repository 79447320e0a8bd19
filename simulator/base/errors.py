"""The one exception that means "your input is wrong", as opposed to a defect of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong: one line that says where, what, and what would be right.

    The command line prints the message and exits with status 2; any other exception is our defect.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or all of them when none is near.

    >>> did_you_mean("zpf", ["uniform", "zipf"])
    "did you mean 'zipf'?"
    >>> did_you_mean("qqq", ["uniform", "zipf"])
    'choose one of: uniform, zipf'
    """
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    if near:
        return f"did you mean '{near[0]}'?"
    return "choose one of: " + ", ".join(choices) if choices else "there are none"
