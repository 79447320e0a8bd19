"""Files of another machine, which is this one here, seen from a process in another folder."""

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

import simulator
from simulator.base import home, trust
from simulator.base.data import available_files, shipped_folder
from simulator.base.errors import UserError
from simulator.base.home import Far, fetch, fetch_files
from simulator.base.reading import read_toml


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The command's current folder."""
    folder = tmp_path / "command" / "work"
    (folder / "workloads" / "models").mkdir(parents=True)
    (folder / "workloads" / "models" / "own.toml").write_text("key = 1")
    (folder / "workloads" / "models" / "huge.csv").write_text("1,2")
    (folder / "own.toml").write_text("key = [")
    (folder.parent / "beside.csv").write_text("0123456789")
    return folder


@pytest.fixture
def root(place, tmp_path, monkeypatch):
    """This process is another machine's, where all of that is missing; its own root for it."""
    asked = []

    def ask(function):
        asked.append(function)
        return function()

    shipped, found = shipped_folder(), tmp_path / "root"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(home._State, "far", None)
    monkeypatch.setattr(home._State, "shipped", None)
    home.join_home(place, shipped, Far(found, ask, {}))
    return found


def test_a_file_is_copied_in_parts_and_found_by_any_name(root, place, monkeypatch):
    monkeypatch.setattr(home, "_PART_BYTES", 3)
    there = place.parent / "beside.csv"
    found = fetch(there)
    assert found == root / there.relative_to("/")
    assert found.read_text() == "0123456789"
    assert fetch(found) == found
    assert fetch(Path("../beside.csv")) == Path("../beside.csv")  # as the command calls it
    assert Path("../beside.csv").read_text() == "0123456789"
    assert Path.cwd() == root / place.relative_to("/")


def test_what_is_not_there_and_moesims_own_files_keep_their_paths(root, place):
    own = Path(simulator.__file__)
    for path in (place / "nothing", Path("nothing"), own):
        assert fetch(path) == path
    assert not Path("nothing").exists()


def test_of_a_folder_only_the_files_that_are_asked_for_are_copied(root, place):
    assert os.listdir(fetch(place)) == []
    assert os.listdir(fetch_files(place / "workloads" / "models", ".toml")) == ["own.toml"]
    assert len(os.listdir(fetch_files(place / "workloads" / "models"))) == 2


def test_names_lead_to_the_commands_own_files_and_to_those_that_ship_there(root):
    files = available_files("workloads/models")
    assert read_toml(files["own"]) == {"key": 1}
    assert all(path.is_relative_to(root) for path in files.values())
    assert "mixtral-8x7b" in files


def test_an_error_calls_a_file_as_the_command_would(root, place):
    with pytest.raises(UserError, match=f"^{place}/own.toml.*: not valid TOML"):
        read_toml(place / "own.toml")


def test_modules_that_the_command_allows_are_fetched_one_by_one(root, place, monkeypatch):
    for name, text in (("__init__", ""), ("used", "from . import other"), ("other", "VALUE = 7")):
        (place / "fetched_package").mkdir(exist_ok=True)
        (place / "fetched_package" / f"{name}.py").write_text(text)
    (place / "fetched_package" / "unused.py").write_text("")
    for place_of in ("path", "meta_path"):
        monkeypatch.setattr(sys, place_of, list(getattr(sys, place_of)))
    monkeypatch.setattr(trust._Allowed, "folder", None)
    trust.allow_as_sender(place)
    sys.path.remove(str(place))  # which is on this machine after all
    assert import_module("fetched_package.used").other.VALUE == 7
    fetched = root / place.relative_to("/") / "fetched_package"
    assert sorted(path.stem for path in fetched.glob("*.py")) == ["__init__", "other", "used"]
    for name in [name for name in sys.modules if name.startswith("fetched_package")]:
        del sys.modules[name]
