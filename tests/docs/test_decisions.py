"""Decisions have numbers, dates and reasons, and the map of the house names each once."""

import itertools
import re
import tomllib

import pytest

from tests.docs.pages import ROOT

DECISIONS = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
SECTIONS = ["Context", "Choice", "Rejected", "Cost"]
STATUS = re.compile(r"- Status: (accepted|superseded by \[\d+\])", re.ASCII)


def test_decisions_are_numbered_from_one():
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    assert len(DECISIONS) >= 86


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_when_and_why(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert re.search(r"(?m)^- Date: \d{4}-\d\d-\d\d$", text)
    assert STATUS.search(text)
    assert re.findall(r"(?m)^## (.*)$", text) == SECTIONS
    assert all(part.strip() for part in re.split(r"(?m)^## .*$", text))


def test_the_map_names_every_decision_once():
    named = re.findall(r"\[(\d+)\]\(docs/adr/(\d+)-", DESIGN)
    assert sorted(int(number) for number, _ in named) == list(range(1, len(DECISIONS) + 1))
    assert all(int(number) == int(file) for number, file in named)
    for path in DECISIONS:
        title = path.read_text(encoding="utf-8").partition(". ")[2].partition("\n")[0]
        assert f"(docs/adr/{path.name}) {title}" in DESIGN


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


def test_what_is_amended_says_so_in_both():
    texts = {int(path.name[:4]): path.read_text(encoding="utf-8") for path in DECISIONS}
    amended, amends = (
        {
            (number, int(other))
            for number, text in texts.items()
            for line in re.findall(rf"(?m)^- {field}: .*$", text)
            for other in re.findall(r"\[(\d+)\]", line)
        }
        for field in ("Status", "Amends")
    )
    assert amended
    assert amended == {(old, new) for new, old in amends}
