"""A release is one command, which leaves nothing half done."""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow
ABOUT = ("simulator/__init__.py", "CHANGELOG.md", "CITATION.cff", "pyproject.toml")
IDENTITY = {
    f"GIT_{who}_{what}": told
    for who in ("AUTHOR", "COMMITTER")
    for what, told in (("NAME", "somebody"), ("EMAIL", "somebody@example.org"))
}


def git(folder, *words):
    done = subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True,
        env={**os.environ, **IDENTITY},
    )  # fmt: skip
    return done.stdout.strip()


def release(folder, version, check="true", audit="true"):
    program = str(ROOT / ".ci/release.py")
    command = [sys.executable, program, version, "--check", check, "--audit", audit]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, **IDENTITY},
    )  # fmt: skip


@pytest.fixture
def clone(tmp_path):
    """A clone of the project in which what is changed here is committed."""
    pytest.importorskip("hatchling", reason="needs pip install --group dev")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: the source distribution has no history to tag")
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--no-tags", str(ROOT), str(folder))
    for name in ABOUT:
        (folder / name).write_bytes((ROOT / name).read_bytes())
    if git(folder, "status", "--porcelain"):
        git(folder, "commit", "--quiet", "--all", "--message", "as it is here")
    return folder


def test_a_release_is_versioned_built_committed_and_tagged(clone):
    unreleased = (clone / "CHANGELOG.md").read_text().partition("## Unreleased\n")[2]
    done = release(clone, "7.1.0")
    assert done.returncode == 0, done.stderr
    assert git(clone, "describe", "--exact-match") == "v7.1.0"
    assert git(clone, "status", "--porcelain") == ""
    assert '__version__ = "7.1.0"' in (clone / "simulator/__init__.py").read_text()
    changelog = (clone / "CHANGELOG.md").read_text()
    assert re.search(r"\n## Unreleased\n\n## 7\.1\.0 - \d{4}-\d\d-\d\d\n", changelog)
    assert changelog.endswith(unreleased)
    cited = (clone / "CITATION.cff").read_text()
    assert re.search(r"(?m)^version: 7\.1\.0\n", cited)
    wheel, sdist = (next((clone / "dist").glob(f"*{end}")) for end in (".whl", ".tar.gz"))
    assert wheel.name.startswith("moesim-7.1.0-")
    names = zipfile.ZipFile(wheel).namelist()
    assert "simulator/_data/workloads/models/mixtral-8x7b.toml" in names
    with tarfile.open(sdist) as packed:
        assert "moesim-7.1.0/CITATION.cff" in packed.getnames()
    again = release(clone, "7.2.0")
    assert "nothing stands under '## Unreleased'" in again.stderr


@pytest.mark.parametrize(
    ("version", "check", "said"),
    [
        ("7.1", "true", "three numbers"),
        ("0.0.1", "true", "does not follow"),
        ("7.1.0", "false", "'false' failed; nothing was changed"),
        ("7.1.0", "touch left_over", "left changes behind"),
        ("7.1.0", None, "'false' failed; nothing was changed"),
    ],
)
def test_what_is_no_release_changes_nothing(clone, version, check, said):
    before = git(clone, "rev-parse", "HEAD")
    done = release(clone, version, check or "true", "true" if check else "false")
    assert done.returncode == 1
    assert said in done.stderr
    assert git(clone, "rev-parse", "HEAD") == before
    assert git(clone, "diff", "--stat") == ""
    assert git(clone, "tag") == ""


def test_changes_that_are_not_committed_stand_in_the_way(clone):
    (clone / "README.md").write_text("changed")
    done = release(clone, "7.1.0")
    assert "the tree has changes" in done.stderr
    assert git(clone, "tag") == ""


def test_licences_of_all_dependencies_are_known_and_leave_users_free():
    program = runpy.run_path(str(ROOT / ".ci/release.py"))
    found = program["list_licences"]()
    assert {"moesim", "numba", "llvmlite", "numpy", "typer"} <= set(found)  # llvmlite by numba
    assert "pytest" not in found
    assert {name: said for name, said in found.items() if not program["is_free"](said)} == {}
    bound = ("", "GPL-3.0-only", "LGPLv3+", "MIT AND GPL-2.0", "Proprietary")
    assert not any(map(program["is_free"], bound))
