"""Sphinx: pages are written in Markdown (MyST), the reference is made from the program."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

from simulator import __version__  # noqa: E402 - found by the line above

project = "moesim"
author = "the authors of moesim"
copyright = "2026, the authors of moesim. Apache-2.0"  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "reference_pages",
]
exclude_patterns = ["_build", "notebooks"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
default_role = "code"

html_theme = "furo"
html_title = f"moesim {release}"
html_static_path, html_css_files = ["_static"], ["wide.css"]
html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "monokai"
html_theme_options = {"source_directory": "docs/"}
