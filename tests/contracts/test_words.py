"""Every docstring stands alone, and every function's name says what it does.

A docstring is a noun phrase or an imperative: one that begins with "Of", "Likewise" or "What" is
understood only beside what it refers to. A function is named by a verb and its object, or, where it
is a property or a formula, by a noun; a bare participle, preposition or adverb names neither.
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
_PARTICLES = frozenset(
    [
        "about",
        "above",
        "after",
        "again",
        "against",
        "ahead",
        "along",
        "among",
        "apart",
        "around",
        "as",
        "at",
        "away",
        "back",
        "before",
        "behind",
        "below",
        "beside",
        "besides",
        "between",
        "beyond",
        "by",
        "down",
        "for",
        "forth",
        "from",
        "here",
        "in",
        "inside",
        "into",
        "less",
        "like",
        "of",
        "off",
        "on",
        "once",
        "only",
        "out",
        "over",
        "own",
        "per",
        "since",
        "so",
        "still",
        "than",
        "then",
        "there",
        "through",
        "thus",
        "to",
        "together",
        "too",
        "toward",
        "under",
        "until",
        "up",
        "upon",
        "with",
        "within",
        "without",
    ]
)
_PARTICIPLES = frozenset(
    [
        "begun",
        "bought",
        "broken",
        "brought",
        "built",
        "caught",
        "chosen",
        "done",
        "drawn",
        "fallen",
        "found",
        "given",
        "gone",
        "grown",
        "held",
        "hidden",
        "hired",
        "kept",
        "known",
        "left",
        "lost",
        "made",
        "met",
        "redrawn",
        "seen",
        "sent",
        "shown",
        "sold",
        "sought",
        "spelled",
        "spelt",
        "spoken",
        "stood",
        "sung",
        "taken",
        "thought",
        "told",
        "understood",
        "withdrawn",
        "won",
        "worn",
        "written",
    ]
)
_THIRD_PERSON = frozenset(
    [
        "answers",
        "asks",
        "carries",
        "covers",
        "draws",
        "expects",
        "finds",
        "fits",
        "gives",
        "goes",
        "hires",
        "hits",
        "holds",
        "keeps",
        "makes",
        "meets",
        "says",
        "sees",
        "shows",
        "spells",
        "stays",
        "takes",
        "tells",
        "writes",
    ]
)
_ENDS_LIKE_A_PARTICIPLE = re.compile(r"\w{2,}ed")
_NO_PARTICIPLES = frozenset(("bed", "embed", "exceed", "feed", "need", "proceed", "seed", "speed"))


def _is_participle(word: str) -> bool:
    return word in _PARTICIPLES or (
        _ENDS_LIKE_A_PARTICIPLE.fullmatch(word) is not None and word not in _NO_PARTICIPLES
    )


def _says_nothing(name: str) -> bool:
    """Whether a name has no noun and no verb: ``held``, ``over``, ``drawn_before``, ``told``.

    >>> [_says_nothing(name) for name in ("held", "drawn_before", "_own", "sees")]
    [True, True, True, True]
    >>> [_says_nothing(name) for name in ("shut_down", "by_popularity", "shared_rates", "feed")]
    [False, False, False, False]
    """
    words = name.strip("_").split("_")
    empty = all(word in _PARTICLES or _is_participle(word) for word in words)
    return empty or words[0] in ("hired", "told") or (len(words) == 1 and words[0] in _THIRD_PERSON)


def _is_free(function: ast.FunctionDef) -> bool:
    """Whether a name may be any word: of a property, or of a statement that is true or false."""
    decorators = {ast.unparse(one).rpartition(".")[2] for one in function.decorator_list}
    returns_bool = function.returns is not None and ast.unparse(function.returns) == "bool"
    return returns_bool or bool(decorators & {"property", "cached_property"})


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


@pytest.mark.parametrize("room", ROOMS)
def test_functions_are_named_by_what_they_do(room):
    wrong = [
        f"{name}:{node.lineno}: {node.name}"
        for name, tree in _trees(room)
        for node in _statements(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _says_nothing(node.name)
        and not _is_free(node)
    ]
    assert not wrong, "name them by verb and object, or by a noun:\n" + "\n".join(wrong)
