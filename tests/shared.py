"""Measured tables and recorded traces, which are not part of the repository: ``../shared``, or the
folder MOESIM_SHARED names.
"""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MOESIM_SHARED") or Path(__file__).parents[2] / "shared")
ABSENT = "needs the measured files of ../shared, which are not beside this checkout"


def shared_file(relative):
    """The path of a measured file or folder; where it is absent the test is skipped."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(ABSENT)
    return path


def each_shared(paths):
    """Measured things as a test's parameters; where there are none, a single case that is
    skipped.
    """
    return list(paths) or [pytest.param(None, marks=pytest.mark.skip(reason=ABSENT), id="absent")]
