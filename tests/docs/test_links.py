"""Links lead somewhere, and what a page calls a file is one."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import File, read_steps
from tests.docs.pages import PAGES, ROOT, name_page, read_links

PATH = re.compile(
    r"`((?:[a-z_]+/)+[A-Za-z_0-9.-]+\.(?:py|toml|json|csv|npz|md|cff|yml|ipynb))`", re.ASCII
)
"""A file in a folder, as code."""
OWN = {"x", "NAME"} | {
    Path(step.path).stem for page in PAGES for step in read_steps(page) if isinstance(step, File)
}
"""Files that a reader writes."""
FOLDERS = {
    path.name for path in (*ROOT.iterdir(), *(ROOT / "simulator").iterdir()) if path.is_dir()
}
"""Folders of the project, from its root and from the package; other paths are a reader's own."""


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_lead_somewhere(page):
    lost = [
        target
        for link in read_links(page)
        if (target := link.partition("#")[0]) and "://" not in target
        if "generated/" not in target  # Sphinx writes these pages, and looks at links to them
        if not (page.parent / target).exists()
    ]
    assert not lost, f"{name_page(page)} links to what is not there: {', '.join(lost)}"


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_files_that_are_named_are_there(page):
    if page.name == "CHANGELOG.md":
        return  # tells of what is gone, too
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    named = {path for path in PATH.findall(text) if path.split("/")[0] in FOLDERS}
    lost = [
        path
        for path in sorted(named)
        if not ((ROOT / path).exists() or (ROOT / "simulator" / path).exists())
        and Path(path).stem not in OWN
    ]
    assert not lost, f"{name_page(page)} names files that are not there: {', '.join(lost)}"
