"""Compiled functions do without their cache where it is full, damaged, or has no place."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import resource, sys, warnings
sys.path.insert(0, {folder!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (({limit}), -1))
sys.dont_write_bytecode = True
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import doubling
    print(doubling.doubled(21), doubling.doubled(0.25))
print(*(warning.message for warning in said), sep="\\n")
"""
FUNCTION = """
from simulator.base.compiled import compiled

@compiled
def doubled(x):
    return x + x
"""


def run(folder, limit=-1):
    """What a new process prints that compiles the function, and may write files so large."""
    program = textwrap.dedent(PROGRAM).format(folder=str(folder), limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path):
    """Holds the function: numba keeps what it compiles beside the source."""
    (tmp_path / "doubling.py").write_text(FUNCTION)
    return tmp_path


@pytest.mark.slow
def test_a_full_disk_costs_a_cache_and_no_more(folder):
    answer, *said = run(folder, limit=100)
    assert answer == "42 0.5"
    assert len(said) == 1
    assert said[0].startswith("compiled functions cannot be kept, so every start compiles anew: ")


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(folder):
    assert run(folder) == ["42 0.5", ""]
    kept = list(folder.rglob("*.nb[ci]"))
    assert len(kept) == 3  # an index, and one for each type
    for damage in (b"", b"\x80\x04nonsense"):
        for path in kept:
            path.write_bytes(damage)
        assert run(folder)[0] == "42 0.5"


def test_what_a_called_function_or_a_number_of_another_file_becomes_is_compiled_anew(tmp_path):
    """numba looks at a function's own file only, and ran what it had called before."""
    (tmp_path / "twice.py").write_text(FUNCTION.replace("doubled", "twice") + "\nFACTOR = 1\n")
    (tmp_path / "doubling.py").write_text(
        "from simulator.base.compiled import compiled\nfrom twice import FACTOR, twice\n\n"
        "@compiled\ndef doubled(x):\n    return FACTOR * twice(x)\n"
    )
    assert run(tmp_path) == ["42 0.5", ""]
    changed = (tmp_path / "twice.py").read_text().replace("x + x", "3 * x")
    (tmp_path / "twice.py").write_text(changed)
    assert run(tmp_path) == ["63 0.75", ""]
    (tmp_path / "twice.py").write_text(changed.replace("FACTOR = 1", "FACTOR = 2"))
    assert run(tmp_path) == ["126 1.5", ""]
