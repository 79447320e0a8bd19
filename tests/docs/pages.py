"""The written pages, and what is in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "reports/README.md")
    if not {"_build", "generated"} & {*path.parts}
)
"""Everything that people read in Markdown."""


def name_page(path):
    """A page as a test's id."""
    return str(path.relative_to(ROOT))


def read_links(path):
    """Targets of a page's links, without those in code."""
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`\n]*`(?!\])", "", text)
    return re.findall(r"\]\(([^()\s]+)\)", text)
