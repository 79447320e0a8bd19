"""Exceptions for wrong input and lost resources, as opposed to defects of ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from simulator.base.home import name_at_home
from simulator.base.text import one_line, shorten

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM: 128 plus the number of SIGINT, as shells have it."""
_LONGEST_WORD = 300
"""Most characters of an error's word: a path is rarely longer, a damaged file's keys may be."""
_LONGEST_MESSAGE = 4000
"""Most characters of an error, beyond the longest of ours."""
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


class UserError(Exception):
    """Error for wrong input: one line that says where, what, and what would be right.

    The command line prints the message and exits with status 2; any other exception is our defect.
    Input that a message repeats may be endless or hold line breaks, so words and messages are cut,
    and characters that steer a terminal are escaped.
    """

    def __init__(self, message: str) -> None:
        words = _LONG_WORD.sub(
            lambda word: shorten(word[0], _LONGEST_WORD), one_line(name_at_home(message))
        )
        super().__init__(shorten(words, _LONGEST_MESSAGE))


class LostError(Exception):
    """Error for a lost resource, such as a cluster: one line that says what was lost and what
    follows.

    The command line prints the message and exits with status 1.
    """


def check_known(name: str, known: Iterable[str], lacks: str) -> None:
    """Refuse a name that is not among the known ones.

    Args:
        lacks: beginning of the message, before the name: ``"list: unknown family"``.

    Raises:
        UserError: with the nearest known name, or all of them.
    """
    known = list(known)
    if name not in known:
        raise UserError(f"{lacks} '{name}'; {did_you_mean(name, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End an error message with the nearest known word, or with all of them when none is near.

    >>> did_you_mean("zpf", ["uniform", "zipf"])
    "did you mean 'zipf'?"
    >>> did_you_mean("qqq", ["uniform", "zipf"])
    'choose one of: uniform, zipf'
    """
    choices = sorted(known)
    near = difflib.get_close_matches(shorten(word), choices, n=1, cutoff=0.7)
    if near:
        return f"did you mean '{near[0]}'?"
    return "choose one of: " + ", ".join(choices) if choices else "there are none"
