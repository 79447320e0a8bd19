"""Every docstring stands alone: it is a noun phrase or an imperative. One that begins with "Of",
"Likewise" or "What" is understood only beside what it refers to.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "simulator"

ROOMS = sorted(path.name for path in HOUSE.iterdir() if (path / "__init__.py").is_file())
_BEGINS_BADLY = re.compile(
    r"(Of|Likewise|That|So|The same|Same|Those|These|This|They|Their|There|As|It|Its|And|Also|But"
    r"|Or|Then|Both|Either|Neither|Nothing|Such|What|Where|Which|How|When|Who)\b"
)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement inside a module or a statement, however deep."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, field, ()):
            yield child
            yield from _statements(child)


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Every text that stands as a statement: of modules, classes, functions and fields."""
    for node in _statements(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value


def _trees(room: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((HOUSE / room).rglob("*.py")):
        yield str(path.relative_to(HOUSE)), ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_stand_alone(room):
    wrong = [
        f"{name}:{text.lineno}: {' '.join(text.value.split())[:70]}"
        for name, tree in _trees(room)
        for text in _docstrings(tree)
        if _BEGINS_BADLY.match(text.value.strip())
    ]
    assert not wrong, "begin with a noun or an imperative:\n" + "\n".join(wrong)
