"""Every finding has its sentence in the table, and gives it the facts that it needs."""

import ast
from pathlib import Path

import pytest
from jinja2 import meta, nodes

from simulator.base.findings import environment, sentences

HOUSE = Path(__file__).parents[2] / "simulator"
NODES = [
    (path, node)
    for path in sorted(HOUSE.rglob("*.py"))
    if "indings import" in (text := path.read_text(encoding="utf-8"))
    for node in ast.walk(ast.parse(text))
]
PARSED = {kind: environment().parse(text) for kind, text in sentences().items()}
TEXTS = [one.value for _, one in NODES if isinstance(one, ast.Constant)]
INCLUDED = [name for one in PARSED.values() for name in meta.find_referenced_templates(one)]
FAMILIES = ("difference.", "phase.", "cause.", "map.along_", "map.at_")
"""Sections whose rows are chosen by name."""


def needs(kind):
    """The facts of a sentence, and of those in it."""
    inner = [name for name in meta.find_referenced_templates(PARSED[kind]) if name]
    own = meta.find_undeclared_variables(PARSED[kind]) - environment().globals.keys()
    made = {one.name for one in PARSED[kind].find_all(nodes.Name) if one.ctx != "load"}
    return own.union(*map(needs, inner)) - made


@pytest.mark.parametrize("kind", PARSED)
def test_a_sentence_is_said_somewhere(kind):
    assert kind in TEXTS or kind in INCLUDED or kind.startswith(FAMILIES)


def test_findings_give_their_sentences_what_these_need():
    checked = 0
    for path, call in NODES:
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Finding":
            continue
        names = [one.value for one in ast.walk(call.args[0]) if isinstance(one, ast.Constant)]
        given = {one.arg for one in call.keywords}
        for kind in {*names} & {*PARSED} if None not in given else ():
            missing = needs(kind) - given
            assert not missing, f"{path.name}:{call.lineno}: {kind} needs {sorted(missing)}"
            checked += 1
    assert checked > 30
