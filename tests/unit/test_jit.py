"""Compiled functions do without their cache where it is full, damaged, or has no place."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from simulator.base import caches
from simulator.base.jit import jit
from simulator.cli import app
from simulator.engine.loop import run_ahead

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
from simulator.base.jit import jit

@jit
def doubled(x):
    return x + x
"""


def run(folder, limit=-1, kept=None):
    """What a new process prints that compiles the function, and may write files so large.

    Args:
        kept: where compiled functions are kept, by default beside the source.
    """
    program = textwrap.dedent(PROGRAM).format(folder=str(folder), limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NUMBA_CACHE_DIR": str(kept or folder)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path):
    """Holds the function."""
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
    kept = list((folder / "moesim").glob("*.nb[ci]"))
    assert len(kept) == 3  # an index, and one for each type
    for damage in (b"", b"\x80\x04nonsense"):
        for path in kept:
            path.write_bytes(damage)
        assert run(folder)[0] == "42 0.5"


@pytest.mark.slow
def test_machine_code_with_flipped_bits_is_not_run(folder):
    """It ended in a segmentation fault, or in a wrong answer."""
    assert run(folder) == ["42 0.5", ""]
    one, other = sorted((folder / "moesim").glob("*.nbc"))
    for damaged, whole in ((one, other), (other, one)):
        code, before = bytearray(damaged.read_bytes()), whole.read_bytes()
        first = code.index(b"\x7fELF") + 64  # behind the header of what is linked
        for place in range(first, first + 64):
            code[place] ^= 0xFF
        damaged.write_bytes(code)
        assert run(folder) == ["42 0.5", ""]
        assert damaged.read_bytes() != code
        assert whole.read_bytes() == before  # and is not compiled again


@pytest.mark.slow
def test_what_a_called_function_or_a_number_of_another_file_becomes_is_compiled_anew(tmp_path):
    """numba looks at a function's own file only, and ran what it had called before."""
    (tmp_path / "twice.py").write_text(FUNCTION.replace("doubled", "twice") + "\nFACTOR = 1\n")
    (tmp_path / "doubling.py").write_text(
        "from simulator.base.jit import jit\nfrom twice import FACTOR, twice\n\n"
        "@jit\ndef doubled(x):\n    return FACTOR * twice(x)\n"
    )
    assert run(tmp_path) == ["42 0.5", ""]
    changed = (tmp_path / "twice.py").read_text().replace("x + x", "3 * x")
    (tmp_path / "twice.py").write_text(changed)
    assert run(tmp_path) == ["63 0.75", ""]
    (tmp_path / "twice.py").write_text(changed.replace("FACTOR = 1", "FACTOR = 2"))
    assert run(tmp_path) == ["126 1.5", ""]


@pytest.mark.slow
def test_another_clone_of_the_same_sources_finds_what_one_has_compiled(tmp_path):
    clones = [tmp_path / name for name in ("one", "other")]
    for clone in clones:
        clone.mkdir()
        (clone / "doubling.py").write_text(FUNCTION)
        assert run(clone, kept=tmp_path) == ["42 0.5", ""]
    assert len(list((tmp_path / "moesim").iterdir())) == 3
    (clones[1] / "doubling.py").write_text(FUNCTION.replace("x + x", "3 * x"))
    assert run(clones[1], kept=tmp_path) == ["63 0.75", ""]
    assert run(clones[0], kept=tmp_path) == ["42 0.5", ""]  # and both are kept


BORROWING = """
from simulator.base.jit import jit_inner

@jit_inner
def twice(x):
    return x + x

@jit_inner
def fourfold(x):
    return twice(twice(x))

def doubled(x):
    return fourfold(x) - twice(x)
"""


@pytest.mark.slow
def test_a_borrowing_function_is_called_from_both_sides_and_kept_for_both(tmp_path):
    (tmp_path / "doubling.py").write_text(BORROWING)
    kept = [], []
    for found in kept:
        assert run(tmp_path) == ["42 0.5", ""]
        found += sorted((tmp_path / "moesim").iterdir())
    assert kept[0] == kept[1]
    # For each type, and with an index: fourfold as Python calls it, and twice as either does.
    assert len(kept[0]) == 3 * (2 + 1)


def test_caches_are_measured_and_cleared_and_no_file_of_others_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("MOESIM_CACHE", str(tmp_path / "plan"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    key = "ab" + "0" * 62
    mine = [
        tmp_path / "moesim" / "a.nbi",
        tmp_path / "plan" / "ab" / f"{key}.json",
        tmp_path / "plan" / "findings.sqlite",
        tmp_path / "user" / "moesim" / "measured" / "sparsity-1.json",
    ]
    others = [
        tmp_path / "other_1" / "a.nbi",
        tmp_path / "plan" / "ab" / "notes.json",
        tmp_path / "plan" / "mine.json",
        tmp_path / "moesim" / "readme.txt",
    ]
    for path in mine + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("12345")
    runner = CliRunner()
    for command in ("info", "clear"):
        found = json.loads(runner.invoke(app, ["cache", command, "--json"]).stdout)
        assert [(one["files"], one["bytes"]) for one in found.values()] == [(1, 5), (2, 10), (1, 5)]
    assert [path for path in mine if path.exists()] == []
    assert all(path.exists() for path in others)
    assert "0 files" in runner.invoke(app, ["cache", "info"]).output


def test_that_something_is_compiled_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        caches.tell_compiling(lambda: said.append("compiling"))
        function = jit(_halve)
        assert (function(4.0), function(4)) == (2.0, 2.0)
    assert said == ["compiling"]


def _halve(x):
    return x / 2


def test_the_inner_loop_counts_no_references():
    """No function that it reaches, but those of numbers alone."""
    found, left = {}, [run_ahead]
    while left:
        function = left.pop()
        found[function.__name__] = function
        called = set(function.py_func.__code__.co_names)
        left += [
            value
            for name, value in function.py_func.__globals__.items()
            if name in called and hasattr(value, "py_func") and value.__name__ not in found
        ]
    counting = {name for name, one in found.items() if one.targetoptions.get("_nrt", True)}
    assert counting == {"sequences_s"}
    assert {"take_steps", "price_step", "form_step", "complete_step", "add_sums"} <= set(found)
