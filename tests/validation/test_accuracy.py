"""The accuracy document is what the program says of itself."""

import re
from pathlib import Path

import pytest

from simulator.lab.validation.accuracy import accuracy_table, markdown_of
from simulator.lab.validation.board import describe_run, scoreboard

pytestmark = pytest.mark.xdist_group("published")
DOCUMENT = Path(__file__).parents[2] / "docs" / "accuracy.md"


@pytest.fixture(scope="module")
def board(published):
    with describe_run() as run:
        return scoreboard([published], run)


@pytest.fixture(scope="module")
def table(board):
    return accuracy_table(board)


def test_the_document_holds_what_the_command_writes(table):
    """``make accuracy`` writes it; the part of what ships does not depend on other files."""
    marked = re.search(
        r"<!-- accuracy: published -->\n\n(.*?)\n<!-- end: published -->",
        DOCUMENT.read_text(),
        re.DOTALL,
    )
    assert marked, "docs/accuracy.md lacks its marks: moesim validate --accuracy docs/accuracy.md"
    assert marked[1] == markdown_of(table, "published")


def test_every_published_group_has_a_row(board, table):
    told = " ".join(table["what"])
    assert all(group in told for group in set(board.rows["group"]))
