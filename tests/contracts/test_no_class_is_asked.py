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


def kind_classes():
    return {member.__name__ for member, _ in kinds()}


def kind_fields():
    """Attributes that some kinds have and others do not."""
    return {
        name
        for member, base in kinds()
        for name in member.model_fields.keys() - base.model_fields.keys()
    }


def questions(tree, classes, fields):
    """Lines that ask for a class, or whether there is an attribute that only some kinds have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Match):
            names = {
                name.id
                for case in node.cases
                for part in ast.walk(case.pattern)
                if isinstance(part, ast.MatchClass)
                for name in ast.walk(part.cls)
                if isinstance(name, ast.Name)
            }
            yield from [node.lineno] * bool(names & classes)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id in ("isinstance", "issubclass"):
            asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            asked |= {p.attr for p in ast.walk(node.args[1]) if isinstance(p, ast.Attribute)}
            yield from [node.lineno] * bool(asked & classes)
        if node.func.id in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant):
            yield from [node.lineno] * (node.args[1].value in fields)


def test_no_file_asks_for_the_class_of_a_mixer_or_a_block():
    classes, fields, kept = kind_classes(), kind_fields(), own_files()
    assert {"GroupedQueryAttention", "MoE"} <= classes
    assert {"kv_rank", "num_heads"} <= fields
    asked = [
        f"{path.relative_to(HOUSE)}, line {line}"
        for path in sorted(HOUSE.rglob("*.py"))
        if path not in kept and path != ANSWERS_HELD
        for line in questions(ast.parse(path.read_text(encoding="utf-8")), classes, fields)
    ]
    assert not asked, f"make these a question of Mixer or FFN: {'; '.join(asked)}"


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(ffn, MoE)",
        "isinstance(mixer, (int, mla.LatentAttention))",
        "issubclass(type(mixer), Mamba2)",
        "hasattr(mixer, 'kv_rank')",
        "getattr(mixer, 'num_heads', 0)",
        "match mixer:\n    case LatentAttention(): pass",
    ],
)
def test_a_question_for_a_class_is_seen(text):
    assert list(questions(ast.parse(text), kind_classes(), kind_fields())) == [1]


@pytest.mark.parametrize("text", ["isinstance(mixer, Mixer)", "hasattr(mixer, 'real')", "type(a)"])
def test_other_questions_are_left_alone(text):
    assert list(questions(ast.parse(text), kind_classes(), kind_fields())) == []


def test_no_file_compares_the_kind_of_a_mixer_or_a_block():
    kinds = {*available("mixers"), *available("ffns")}
    asked = [
        f"{path.relative_to(HOUSE)}, line {node.lineno}"
        for path in sorted(HOUSE.rglob("*.py"))
        if ".kind" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "kind"
        and kinds & {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    ]
    assert not asked, f"make these a question of Mixer or FFN: {'; '.join(asked)}"
