"""``import simulator``: documented names, typed, and nothing imported before it is used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import simulator

ROOT = Path(simulator.__file__).parent
HEAVY = ("torch", "ray", "plotly", "pandas", "numba", "numpy", "pydantic", "scipy", "jinja2")


def run_python(program, folder):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=120
    )


def test_the_names_are_complete_and_sorted():
    defined = {name for names in simulator._HOMES.values() for name in names}
    assert set(simulator.__all__) == {"__version__", *defined}
    assert simulator.__all__ == sorted(simulator.__all__)
    assert set(simulator.__all__) <= set(dir(simulator))


def test_type_checkers_see_the_same_names_at_the_same_homes():
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        node.module.removeprefix("simulator."): tuple(alias.name for alias in node.names)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
    }
    assert homes == simulator._HOMES
    (names,) = (node.value for node in stub.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(names) == simulator.__all__
    assert (ROOT / "py.typed").exists()


@pytest.mark.parametrize("name", [name for name in simulator.__all__ if name != "__version__"])
def test_every_name_is_documented(name):
    found = getattr(simulator, name)
    assert found.__module__.startswith("simulator.")
    assert len(found.__doc__) > 40
    if callable(found) and not isinstance(found, type):
        assert "return" in found.__annotations__


def test_nothing_heavy_is_imported_with_the_package(tmp_path):
    program = (
        "import sys, simulator; simulator.UserError; simulator.__version__; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = run_python(program, tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.slow
def test_a_scenario_is_read_without_the_engine_and_a_run_needs_no_torch(tmp_path):
    program = (
        "import sys, simulator; simulator.load_scenario('mixtral_vs_llama2'); "
        "print([name for name in ('numba', 'pandas', 'plotly') if name in sys.modules]); "
        "simulator.run; simulator.plan; simulator.check; "
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = run_python(program, tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


@pytest.mark.slow
def test_types_are_seen_through_the_package(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import simulator\n"
        "results: simulator.Results = simulator.run('mixtral_vs_llama2', fidelity='step')\n"
        "simulator.run('mixtral_vs_llama2', fidelity='steps')\n"
        "results.frames('requests')\n"
        "simulator.ron\n"
    )
    # What types of other packages' own stubs are is not ours, and takes mypy a quarter of a minute.
    options = ("--strict", "--follow-imports=silent", "--no-site-packages", "--config-file=")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--no-error-summary", str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT.parent)},
        timeout=500,
    )
    own = done.stdout.splitlines()
    assert len(own) == 3, done.stdout
    assert 'Argument "fidelity" to "run" has incompatible type "Literal[\'steps\']"' in own[0]
    assert '"Results" has no attribute "frames"' in own[1]
    assert 'Module has no attribute "ron"' in own[2]
