"""``moesim new``: what it writes is right as it is, and nothing of the user's is overwritten."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.base.errors import UserError
from simulator.base.reading import read_toml
from simulator.commands.check import check as check_file
from simulator.commands.new import FOLDERS, read_guides, read_template, write_new
from simulator.config.cluster import load_cluster
from simulator.config.model import load_model


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", FOLDERS)
def test_check_accepts_what_is_written_as_it_is(kind):
    path = write_new(kind, "mine")
    found = check_file(str(path), [])
    assert found.kind == kind
    assert all(note.startswith(("scheduling of ", "no serving points")) for note in found.notes)


OFFERED = re.compile(r"# (?!based_on|num_shared|shared_)(\w+ = .*)")
"""A key that is commented out; not those that need others beside them."""


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_key_that_is_commented_out_would_be_taken(kind):
    lines = read_template(kind).replace("NAME", "tried").splitlines()
    offered = [number for number, line in enumerate(lines) if OFFERED.fullmatch(line)]
    assert offered
    for number in offered:
        changed = [*lines]
        for place in range(number, -1, -1):  # with its table, where that is commented out too
            if place == number or changed[place].startswith("# ["):
                changed[place] = changed[place].removeprefix("# ")
            if changed[place].startswith("["):
                break
        (path := FOLDERS[kind] / "tried.toml").parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(changed))
        assert check_file(str(path), []).kind == kind, lines[number]


def test_what_is_written_is_found_by_its_name():
    write_new("cluster", "my-box")
    write_new("model", "my-model.toml")
    assert load_cluster("my-box-16", "test")[0].num_nodes == 2
    assert load_model("my-model", "test").moe.num_experts == 8


@pytest.mark.parametrize("family", read_guides())
def test_a_new_policy_has_its_test_and_what_that_runs(family, folder):
    path = write_new(family, "mine")
    assert path == Path("my_package/mine.py")
    test = folder / "my_package/test_mine.py"
    for file in (path, test):
        compile(file.read_text(), file, "exec")
    command = {}
    exec(test.read_text().split("\n\n\ndef ")[0], command)
    words = command["COMMAND"]
    assert Path(words[1]).exists()
    named = [file for file in folder.rglob("*.toml") if "my_package.mine" in file.read_text()]
    assert named or any("my_package.mine" in word for word in words)
    with pytest.raises(UserError, match="is there already"):
        write_new(family, "mine")


def test_every_family_with_a_guide_can_be_begun():
    pages = Path(__file__).parents[2] / "docs/guides"
    have = {page.stem for page in pages.glob("*.md") if "# my_package/" in page.read_text()}
    assert read_guides().keys() == have
    assert {"balancing", "routing", "scheduling", "replica-choice"} <= have


@pytest.mark.slow
def test_the_test_of_a_new_policy_passes():
    write_new("balancing", "mine")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_package"]
    subprocess.run(run, check=True)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("scenari", "mine", "did you mean 'scenario'?"),
        ("model", "../mine", "a name has letters"),
        ("model", "", "a name has letters"),
        ("routing", "my-own", "a name has small letters"),
        ("routing", "class", "means nothing to Python"),
    ],
)
def test_a_wrong_kind_or_name_is_refused_and_nothing_written(folder, kind, name, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        write_new(kind, name)
    assert not list(folder.iterdir())


def test_a_second_policy_does_not_run_the_first_ones_machine(folder):
    write_new("topology", "one")
    with pytest.raises(UserError, match=r"\.toml: is there already, of another policy"):
        write_new("topology", "two")
    assert not (folder / "my_package/two.py").exists()


def test_a_file_that_is_there_stays():
    path = write_new("plan", "mine")
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_new("plan", "mine")
    assert path.read_text() == "mine"


def test_a_machine_of_the_users_own_needs_no_sources_and_names_all_that_it_lacks():
    path = write_new("cluster", "mine")
    assert "sources" not in read_toml(path)
    path.write_text('title = "mine"\ntopology = { kind = "switch" }\n')
    with pytest.raises(UserError) as refused:
        check_file(str(path), [])
    assert str(refused.value).endswith("missing keys 'accelerator', 'gpus_per_node', 'scale_up'")
