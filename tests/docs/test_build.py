"""The pages build without a warning, with a reference of everything that there is."""

import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docs")]
PAGES = ROOT / "docs/reference/generated"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of generated pages; Sphinx has read all pages, and `make docs` writes HTML."""
    pytest.importorskip("sphinx", reason="needs pip install --group docs")
    folder = tmp_path_factory.mktemp("pages")
    options = ["-W", "--keep-going", "-q", "-b", "dummy"]
    command = [sys.executable, "-m", "sphinx", *options, ROOT / "docs", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return PAGES


def test_every_key_of_every_kind_has_a_line(built):
    from simulator.commands.schema import describe_keys

    families = describe_keys()
    files = families.pop("files")
    for family, kinds in families.items():
        page = (built / f"policies/{family.replace('_', '-')}.md").read_text()
        for name, kind in kinds.items():
            assert f"\n## `{name}`\n" in page
            assert all(f"\n| `{key.path}` |" in page for key in kind.keys)
    assert len(list((built / "files").glob("*.md"))) == len(files)
    assert all(
        f"| `{key.path}` |" in (built / "files/scenario.md").read_text()
        for key in files["scenario"].keys
    )


def test_commands_and_metrics_are_all_there(built):
    from simulator.cli import app
    from simulator.results.metrics import METRICS

    commands = (built / "commands.md").read_text()
    assert all(f"`moesim {one.name}`" in commands for one in app.registered_commands if one.name)
    assert "Override any key" in commands
    metrics = (built / "metrics.md").read_text()
    assert all(f"| `{name}` |" in metrics for name in METRICS)


WORDS = ("TTFT", "TPOT", "prefill", "decode", "headroom", "ingress delay", "dispatch", "combine")


@pytest.mark.parametrize("word", WORDS)
def test_words_are_in_the_glossary(word):
    assert f"\n{word}" in (ROOT / "docs/glossary.md").read_text()
