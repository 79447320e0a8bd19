"""What a test replaces by name is there: a stale name fails only where somebody runs the test."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def find_module(dotted):
    """The file of a module of the project; none where it is none."""
    path = ROOT.joinpath(*dotted.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


@cache
def read_tree(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def bound_in(nodes):
    """Names that the statements of a module or a class bind, also under conditions."""
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from bound_in(ast.iter_child_nodes(node))
        else:
            yield from (
                name.id
                for name in ast.walk(node)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            )


def is_there(dotted):
    """Whether a name of the project is bound; of what is inherited or set by a class's methods, and
    of other packages, nothing is known and nothing asked.
    """
    home, _, name = dotted.rpartition(".")
    if find_module(dotted):
        return True
    if file := find_module(home):
        return name in bound_in(read_tree(file).body)
    outer, _, owner = home.rpartition(".")
    if not (file := find_module(outer)):
        return not home.startswith(("simulator.", "tests.")) or is_there(home)
    for node in read_tree(file).body:
        if isinstance(node, ast.ClassDef) and node.name == owner and not node.bases:
            return name in bound_in(node.body)
    return is_there(home)


def imported_names(tree):
    """What each imported name stands for."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
            known |= {alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    return known


def replaced_names(tree):
    """Lines and dotted names of ``setattr(owner, "name", ...)`` and ``setattr("owner.name", ...)``
    of a fixture.
    """
    known = imported_names(tree)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr")):
            continue
        texts = [part.value if isinstance(part, ast.Constant) else None for part in node.args[:2]]
        owner, _, rest = ast.unparse(node.args[0]).partition(".")
        if isinstance(texts[0], str):
            yield node.lineno, texts[0]
        elif isinstance(texts[1], str) and owner in known:
            yield node.lineno, ".".join(filter(None, (known[owner], rest, texts[1])))


def test_every_name_that_a_test_replaces_is_there():
    found = [
        (file, line, name)
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if ".setattr(" in file.read_text(encoding="utf-8")
        for line, name in replaced_names(read_tree(file))
    ]
    assert len(found) > 60
    stale = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file, line, name in found
        if not is_there(name)
    ]
    assert stale == []


def test_a_stale_name_is_seen():
    tree = ast.parse(
        "from simulator.engine import timeline\n"
        "from simulator.parallel.workers import Workers\n"
        "monkeypatch.setattr(timeline, 'run_plan', None)\n"
        "monkeypatch.setattr(timeline, 'run_plans', None)\n"
        "monkeypatch.setattr(Workers, '_started', None)\n"
        "monkeypatch.setattr('simulator.parallel.workers.Workers._start', None)\n"
        "monkeypatch.setattr('simulator.gone.name', None)\n"
        "monkeypatch.setattr('importlib.util.find_spec', None)\n"
    )
    found = list(replaced_names(tree))
    assert [line for line, _ in found] == [3, 4, 5, 6, 7, 8]
    assert [line for line, name in found if not is_there(name)] == [4, 5, 7]
