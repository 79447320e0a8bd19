"""Everything that the pages tell a reader to write and to run does what they say."""

import doctest
import importlib
import shlex
import sys

import pytest

from simulator.base import plugins, trust
from tests.docs.blocks import File, list_synopses, read_steps
from tests.docs.pages import PAGES, ROOT, name_page

pytestmark = pytest.mark.slow
RUN = [page for page in PAGES if any(True for _ in read_steps(page))]
"""Pages with files or commands."""
GUIDES = ROOT / "docs/guides"


@pytest.fixture
def reader(tmp_path, moesim, monkeypatch):
    """Somebody who writes files and runs commands in an empty folder, and leaves nothing behind."""
    before, path = set(sys.modules), [*sys.path]
    opened = []

    def write(file):
        if file.path.startswith("simulator/"):
            _open_folder(file.path, tmp_path, opened)
        place = tmp_path / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.text, encoding="utf-8")
        importlib.invalidate_caches()

    def run(command):
        name, *words = shlex.split(command.words)
        assert name == "moesim", f"pages run moesim only, not {command.words}"
        status, printed, told = moesim(*words)
        assert status == (2 if command.printed.startswith("error: ") else 0), told
        return told if status else printed

    yield lambda step: write(step) if isinstance(step, File) else run(step)
    for package in opened:
        package.__path__.pop()
    plugins.kind_files.cache_clear()
    trust.allow_code(None)
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.split(".")[0].startswith("my_") or any(
            name.startswith(f"{package.__name__}.") for package in opened
        ):
            del sys.modules[name]


def _open_folder(path, folder, opened):
    """Let a folder of the reader's be a part of the project's own, which is left as it is."""
    package = importlib.import_module(path.rpartition("/")[0].replace("/", "."))
    package.__path__.append(str(folder / path.rpartition("/")[0]))
    opened.append(package)
    plugins.kind_files.cache_clear()


@pytest.mark.parametrize("page", RUN, ids=name_page)
def test_a_page_can_be_followed_to_the_letter(page, reader):
    if page.parent == GUIDES and page.name != "index.md":
        for step in read_steps(GUIDES / "index.md"):
            if isinstance(step, File):
                reader(step)
    for step in read_steps(page):
        printed = reader(step)
        if not isinstance(step, File):
            assert not (difference := step.tell_difference(printed)), difference


SESSIONS = [page for page in PAGES if "```pycon" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", SESSIONS, ids=name_page)
def test_a_session_of_python_goes_as_it_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.ELLIPSIS
    )  # fmt: skip
    assert found.attempted
    assert not found.failed


SYNOPSES = sorted({line for page in PAGES for line in list_synopses(page)})


@pytest.mark.parametrize("line", SYNOPSES)
def test_a_command_that_is_named_is_there(line):
    import typer.main

    from simulator.cli import app

    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not getattr(command, "commands", None) or getattr(command, "callback", None), line
    known = {name for one in command.params for name in one.opts}
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert asked <= known, f"{line}: no option {', '.join(asked - known)}"
