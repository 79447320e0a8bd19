"""What a page tells a reader to write and to run: files, and commands with what they print.

A file is a fenced block whose first line is a comment with its path (``# my_package/mine.py``), or
one behind a line that ends in its path and a colon. Commands stand in ``console`` blocks behind a
dollar, over several lines where these end in a backslash; ``...`` in what they print stands for
anything, and one without output only has to succeed.
"""

import doctest
import re
from typing import NamedTuple

_FENCE = re.compile(r"(?ms)(?:`([\w./-]+)`:\n\n)?^```(\w*)\n(.*?)^```$")
_PATH = re.compile(r"# ([\w./-]+\.\w+)\n")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class File(NamedTuple):
    """A file that a reader writes."""

    path: str
    text: str


class Command(NamedTuple):
    """A command that a reader runs."""

    words: str
    printed: str

    def tell_difference(self, printed):
        """How ``printed`` differs from what the page shows; empty where it does not."""
        checker = doctest.OutputChecker()
        if not self.printed or checker.check_output(self.printed, printed, _FLAGS):
            return ""
        example = doctest.Example(self.words, self.printed)
        return checker.output_difference(example, printed, _FLAGS | doctest.REPORT_NDIFF)


def read_steps(page):
    """Files and commands of a page, in its order."""
    for named, language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "console":
            yield from _read_commands(text)
        elif named:
            yield File(named, text)
        elif told := _PATH.match(text):
            yield File(told[1], text)


def _read_commands(text):
    for part in re.split(r"(?m)^\$ ", text)[1:]:
        words, _, printed = part.replace("\\\n", "").partition("\n")
        yield Command(words, printed)


def list_synopses(page):
    """Lines of a page that begin with the command in blocks that are not run."""
    for _, language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "console":
            for line in text.splitlines():
                if line.startswith("moesim "):
                    yield line.partition("  #")[0].strip()
