"""What the house keeps: files that are read at once, few rooms, a sentence about each room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "simulator"
ROOMS = sorted(path for path in HOUSE.iterdir() if path.is_dir() and any(path.rglob("*.py")))
MOST_LINES = 800
"""A file is as deep as its subject; a longer one has two that can be told apart."""
OWN_FILES = {
    "base/home.py": "for the door of another machine",
    "base/jit.py": "sources",
    "base/machine.py": "/proc",
    "base/reading.py": "the door itself",
    "base/trust.py": "about an installed package",
    "commands/new.py": "templates and guides that ship",
    "commands/sweep.py": "written a moment before",
    "report/rendering.py": "ship, Plotly's among them",
    "runtime/shard.py": "/proc",
}
"""Modules that read other files than those of users, and what these are."""
LOADED = {"load_file(", "io.BytesIO(", "data"}
"""How what pandas is given begins: never a path, which it would open by itself."""


def test_no_file_is_too_long_to_be_read_at_once():
    files = [*HOUSE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert len(files) > 300
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(files)
    }
    told = [f"{name} has {length} lines" for name, length in lengths.items() if length > MOST_LINES]
    assert not told, f"divide by sense what has more than {MOST_LINES} lines: {'; '.join(told)}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_for(room):
    told = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert told, f"{room.name}/__init__.py has no docstring: say in a sentence what the room is for"
    assert told.endswith("."), f"{room.name}/__init__.py: {told!r} is no whole sentence"


def opened_past_the_door(tree):
    """Lines that open a path for reading without ``simulator.base.reading``, which refuses what
    could block for ever."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = ast.unparse(node.args[0]) if node.args else ""
        verb = name.rpartition(".")[2]
        is_path = verb in ("read_text", "read_bytes") and name != verb
        if verb == "open" and name not in ("os.open", "tarfile.open", "archive.open"):
            is_path = not any(given.startswith(f"'{mode}") for mode in "wx")
        if verb in ("read_csv", "read_parquet") and name.startswith("pd."):
            is_path = not given.startswith(tuple(LOADED))
        if is_path:
            yield node.lineno


def test_every_path_of_a_user_goes_through_one_door():
    found = {
        path.relative_to(HOUSE).as_posix(): list(
            opened_past_the_door(ast.parse(path.read_text(encoding="utf-8")))
        )
        for path in HOUSE.rglob("*.py")
    }
    past = {name: lines for name, lines in found.items() if lines}
    assert set(past) == set(OWN_FILES), f"say open_file, read_bytes, read_text or load_file: {past}"


def test_what_goes_past_the_door_is_seen():
    tree = ast.parse(
        "path.read_text()\npd.read_csv(path)\npath.open('rb')\npath.open()\nopen(path)\n"
        "read_text(path)\npd.read_csv(load_file(path))\npath.open('wb')\narchive.open(name)\n"
    )
    assert list(opened_past_the_door(tree)) == [1, 2, 3, 4, 5]
