"""The README is one page, its picture is small, and what pages tell to make can be made."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, name_page

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", MAKEFILE))
MOST_LINES = 150
MOST_BYTES = 150_000


def test_the_readme_is_one_page_and_begins_with_what_to_make():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < MOST_LINES
    first = [line.split()[:2] for line in lines[:20] if line.startswith("make ")]
    assert first == [["make", "run"], ["make", "quick"], ["make", "test"]]


def test_pictures_are_small():
    pictures = [*(ROOT / "docs/images").glob("*.png")]
    assert pictures
    assert all(path.stat().st_size < MOST_BYTES for path in pictures)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_page
)
def test_what_pages_tell_to_make_can_be_made(page):
    named = re.findall(r"(?m)(?:`|^)make ([a-z -]+)", page.read_text(encoding="utf-8"))
    lost = {target for words in named for target in words.split()} - TARGETS
    assert not lost, f"no target of the Makefile: {', '.join(sorted(lost))}"
