"""Decisions have numbers, reasons and a size that is read in an hour, and links name what they lead
to.
"""

import itertools
import re
import tomllib

import pytest

from tests.docs.pages import PAGES, ROOT, name_page

DECISIONS = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
SECTIONS = ["Why", "Rejected", "Cost"]
MOST_WORDS, MOST_WORDS_OF_ALL = 250, 9_000
"""Words of one decision, and of all: an hour at 150 a minute."""
LINK = re.compile(r"\[(?:decision )?(\d+)(?:\. ([^\]]+))?\]\((?:\.\./|docs/)*adr/(\d{4}-[^)]+)\)")
"""A decision's number, perhaps its title, and its file."""


def count_words(path):
    """Words with a letter or a digit."""
    return sum(any(map(str.isalnum, word)) for word in path.read_text(encoding="utf-8").split())


def test_decisions_are_numbered_from_one():
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    assert len(DECISIONS) >= 30


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_what_and_why(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert re.findall(r"(?m)^## (.*)$", text) == SECTIONS
    assert all(part.strip() for part in re.split(r"(?m)^#+ .*$", text)[1:])
    assert count_words(path) <= MOST_WORDS, "say less, or divide it"


def test_all_decisions_are_read_in_an_hour():
    assert sum(map(count_words, DECISIONS)) <= MOST_WORDS_OF_ALL


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_to_decisions_have_their_numbers_and_titles(page):
    for number, title, file in LINK.findall(page.read_text(encoding="utf-8")):
        text = (ROOT / "docs/adr" / file).read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. {title}"), f"{name_page(page)}: {number}"


def test_the_picture_shows_the_layers_from_the_bottom_up():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(each for each in contracts["contracts"] if each["type"] == "layers")["layers"]
    levels = [set(re.split(r"\s*:\s*", layer)) for layer in reversed(layers)]
    picture = DESIGN.split("```")[1]
    rooms = re.findall(r"(?m)^   ([a-z_]+) +[a-z]+", picture)
    level = {room: number for number, level in enumerate(levels) for room in level}
    assert set(rooms) == set(level) - {"__main__"}
    for earlier, later in itertools.pairwise(rooms):
        assert level[earlier] <= level[later], f"{earlier} is drawn below {later}"
