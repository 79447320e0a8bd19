"""What the house keeps: files that are read at once, few rooms, a sentence about each room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "simulator"
ROOMS = sorted(path for path in HOUSE.iterdir() if path.is_dir() and any(path.rglob("*.py")))
MOST_LINES = 800
"""A file is as deep as its subject; a longer one has two that can be told apart."""
MOST_ROOMS = 20
"""What still fits one page and one look."""


def test_no_file_is_too_long_to_be_read_at_once():
    files = [*HOUSE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert len(files) > 300
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(files)
    }
    told = [f"{name} has {length} lines" for name, length in lengths.items() if length > MOST_LINES]
    assert not told, f"divide by sense what has more than {MOST_LINES} lines: {'; '.join(told)}"


def test_every_file_lies_in_a_room():
    assert {path.name for path in HOUSE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_the_rooms_fit_one_page():
    assert len(ROOMS) <= MOST_ROOMS, ", ".join(room.name for room in ROOMS)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_for(room):
    told = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert told, f"{room.name}/__init__.py has no docstring: say in a sentence what the room is for"
    assert told.endswith("."), f"{room.name}/__init__.py: {told!r} is no whole sentence"
