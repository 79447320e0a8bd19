"""Within a search names are looked up, and what they name is loaded, once; outside of it anew."""

import errno
import os
import shutil

import pytest

from simulator.base.data import available_files, cache_lookups, shipped_folder
from simulator.base.errors import UserError
from simulator.config.cluster import load_cluster
from simulator.config.host import load_any_calibration
from simulator.config.model import load_model


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A model of the user's, in the current folder."""
    folder = tmp_path / "workloads" / "models"
    folder.mkdir(parents=True)
    shutil.copy(shipped_folder() / "workloads/models/llama-3.1-8b.toml", folder / "own.toml")
    monkeypatch.chdir(tmp_path)
    return folder / "own.toml"


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_model("llama-3.1-8b", "test"),
        lambda: load_cluster("h100-sxm-8", "test"),
        lambda: load_any_calibration("hopper", "test"),
    ],
    ids=["model", "cluster", "calibration"],
)
def test_what_is_loaded_once_is_what_is_loaded_anew(load):
    with cache_lookups():
        first = load()
        assert load() is first
    assert load() == first


def test_a_file_that_changes_or_comes_is_seen_by_the_next_search(own_model):
    text = own_model.read_text().partition("[published]")[0]
    with cache_lookups():
        layers = load_model("own", "test").num_layers
        own_model.write_text(text.replace("repeat = 32", "repeat = 16"))
        shutil.copy(own_model, own_model.with_name("later.toml"))
        assert load_model("own", "test").num_layers == layers == 32
        assert "later" not in available_files("workloads/models")
    with cache_lookups():
        assert load_model("own", "test").num_layers == 16
        assert "later" in available_files("workloads/models")


def test_what_cannot_be_loaded_is_told_each_time_and_by_its_own_place():
    with cache_lookups():
        for place in ("first.toml", "second.toml"):
            with pytest.raises(UserError, match=f"^{place}: unknown model"):
                load_model("nothing-of-that-name", place)


@pytest.mark.parametrize("asked", ["os.listdir", "pathlib.Path.is_dir"])
def test_a_folder_that_cannot_be_read_is_told_though_the_name_ships(own_model, monkeypatch, asked):
    """The user's own file of that name would win, which nobody can know."""
    folder = str(own_model.parent)

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    monkeypatch.setattr(asked, refuse)
    with pytest.raises(UserError, match=f"^{folder}: cannot be read: Permission denied"):
        load_model("mixtral-8x7b", "test")
