"""Nobody looks at the class of a mixer or a feed-forward block: it answers what it is asked."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from simulator.base.plugins import available, package_of
from simulator.config.ffns import FFN
from simulator.config.mixers import Mixer

HOUSE = Path(__file__).parents[2] / "simulator"
FAMILIES = {"mixers": Mixer, "ffns": FFN}
ANSWERS_HELD = HOUSE / "config" / "own_kinds.py"
"""Holds what a user's own kind answers to the types that the families promise."""


def own_files():
    """The files of the families themselves, which may know each other."""
    return {path for family in FAMILIES for path in (HOUSE / "config" / family).rglob("*.py")}


def kinds():
    """The class of every kind, and that of its family."""
    for family, base in FAMILIES.items():
        for kind in available(family):
            module = importlib.import_module(f"{package_of(family).__name__}.{kind}")
            for _, member in inspect.getmembers(module, inspect.isclass):
                if issubclass(member, base) and member.__module__ == module.__name__:
                    yield member, base


def read_kinds():
    """Classes of kinds, and their names in files."""
    return {member.__name__ for member, _ in kinds()}, {*available("mixers"), *available("ffns")}


def questions(tree, classes, kinds):
    """Lines that ask for a class, or compare a kind."""
    for node in ast.walk(tree):
        asked = set()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            parts = list(ast.walk(node.args[1]))
            asked = {part.id for part in parts if isinstance(part, ast.Name)} & classes
            asked |= {part.attr for part in parts if isinstance(part, ast.Attribute)} & classes
        if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith(".kind"):
            parts = ast.walk(node)
            asked = {part.value for part in parts if isinstance(part, ast.Constant)} & kinds
        if asked:
            yield node.lineno


def test_no_file_asks_for_the_class_or_the_kind_of_a_mixer_or_a_block():
    classes, names = read_kinds()
    assert {"GroupedQueryAttention", "MoE"} <= classes
    left_alone = {*own_files(), ANSWERS_HELD}
    asked = [
        f"{path.relative_to(HOUSE)}, line {line}"
        for path in sorted({*HOUSE.rglob("*.py")} - left_alone)
        for line in questions(ast.parse(path.read_text(encoding="utf-8")), classes, names)
    ]
    assert not asked, f"make these a question of Mixer or FFN: {'; '.join(asked)}"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("isinstance(ffn, MoE)", [1]),
        ("isinstance(mixer, (int, mla.LatentAttention))", [1]),
        ("issubclass(type(mixer), Mamba2)", [1]),
        ("mixer.kind == 'gqa'", [1]),
        ("isinstance(mixer, Mixer)", []),
    ],
)
def test_a_question_for_a_class_is_seen(text, lines):
    assert list(questions(ast.parse(text), *read_kinds())) == lines
