"""A file runs nobody's code: a dotted kind imports what is installed, and the current folder's
modules only where the command line says so.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import typer

from simulator.base import plugins, trust
from simulator.base.errors import UserError
from simulator.cli import app
from simulator.parallel.workers import Workers
from tests.contracts.test_one_file import ROUTING
from tests.unit.test_sweep import together

PROJECT = Path(__file__).parents[2]
LOUD = "import pathlib\npathlib.Path('ran').touch()\n"
"""A module that leaves a trace when it is imported, in the current folder."""
READ_ONLY_COMMANDS = {
    *(
        ("calibrate",),
        ("cache", "clear"),
        ("cache", "info"),
        ("diff",),
        ("list",),
        ("new",),
        ("report",),
    ),
    *(("schema",), ("sparsity",), ("trace", "record", "train")),
    ("trace", "record", "transformers"),
}
"""They read neither a scenario nor a file that one names."""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current folder full of code, which must not run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "policy.py").write_text(LOUD + ROUTING)
    yield tmp_path
    trust.allow_code(None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "strangers"]:
        del sys.modules[name]


def routing(kind):
    return plugins.build("routing", {"kind": kind}, "s.toml [routing]")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "strangers.policy",
            r"'strangers\.policy' from .*strangers, which is no installed package",
        ),
        ("strangers.policy.more", r"strangers, which is no installed package"),
        ("wsgiref.handlers", r"wsgiref.*, which belongs to Python's standard library"),
        ("sys.path", r"from Python itself, which belongs to Python's standard library"),
        ("typer.__main__", r"typer.*, which is a program, not a policy"),
        ("__main__.x", "if you trust it, say --allow-code"),
    ],
)
def test_what_is_not_installed_is_named_and_not_run(elsewhere, kind, said):
    before = set(sys.modules)
    with pytest.raises(
        UserError, match=rf"^s\.toml \[routing\]: .*kind '{kind}'.*{said}"
    ) as refused:
        routing(kind)
    assert "--allow-code, or simulator.allow_code() in Python" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (elsewhere / "ran").exists()
    assert {
        name for name in set(sys.modules) - before if name.startswith(kind.split(".")[0])
    } == set()


@pytest.mark.parametrize("kind", ["../strangers.policy", ".policy", "a..b", "a.b c"])
def test_what_is_no_modules_name_is_refused_also_where_code_is_allowed(elsewhere, kind):
    trust.allow_code(elsewhere)
    with pytest.raises(UserError, match="no name of a Python module"):
        routing(kind)


def test_a_folder_of_pythonpath_and_a_part_of_a_namespace_are_not_installed(elsewhere):
    sys.path.insert(0, str(elsewhere))
    with pytest.raises(UserError, match="is no installed package"):
        routing("strangers.policy")


def test_an_installed_package_is_imported_wherever_it_lies(elsewhere, monkeypatch):
    installed = elsewhere / ".venv" / "site-packages"
    installed.parent.mkdir()
    (elsewhere / "strangers").rename(elsewhere / "other")
    (installed / "strangers").mkdir(parents=True)
    (installed / "strangers" / "policy.py").write_text(ROUTING)
    monkeypatch.setattr(trust, "_package_folders", lambda: frozenset([installed]))
    sys.path.append(str(installed))
    assert type(routing("strangers.policy")).__name__ == "Neighbours"


def test_an_editable_project_is_installed_unless_it_is_the_current_folder(elsewhere, monkeypatch):
    monkeypatch.setattr(trust, "_editable_folders", lambda: (elsewhere,))
    sys.path.append(str(elsewhere))
    with pytest.raises(UserError, match="--allow-code"):
        routing("strangers.policy")
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(Path, "touch", lambda _: None)
    assert type(routing("strangers.policy")).__name__ == "Neighbours"


def test_allowed_code_is_looked_for_behind_everything_else_and_only_for_a_dotted_kind(elsewhere):
    trust.allow_code(elsewhere)
    assert str(elsewhere) not in sys.path
    assert type(routing("strangers.policy")).__name__ == "Neighbours"
    assert sys.path[-1] == str(elsewhere)
    assert (elsewhere / "ran").exists()


@pytest.mark.parametrize("as_given", [str, Path, lambda _: True, None])
def test_a_program_allows_a_folder_by_its_name_or_the_current_one(elsewhere, as_given):
    trust.allow_code() if as_given is None else trust.allow_code(as_given(elsewhere))
    assert trust.allowed_folder() == elsewhere
    assert type(routing("strangers.policy")).__name__ == "Neighbours"
    trust.allow_code(False)
    assert trust.allowed_folder() is None


def commands(group=None, path=()):
    """Every command with its options."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        if not hasattr(command, "commands"):
            yield (*path, name), options
            continue
        if command.invoke_without_command:
            yield (*path, name), options
        yield from commands(command, (*path, name))


def test_every_command_that_reads_a_scenario_or_what_it_names_takes_the_flag():
    found = dict(commands())
    assert len(found) > 12
    for path, options in found.items():
        assert (trust.FLAG in options) == (path not in READ_ONLY_COMMANDS), path


@pytest.mark.slow
def test_no_command_runs_a_stray_file_of_the_current_folder(elsewhere):
    (elsewhere / "pytz.py").write_text(LOUD)  # pandas looks for it
    (elsewhere / "typer.py").write_text(LOUD)
    kind = "deployments.0.routing.kind=strangers.policy"

    def moesim(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "simulator", *arguments],
            env={**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}"},  # ends in an empty entry
            capture_output=True,
            text=True,
            timeout=120,
        )

    for command in ("check", "run", "execute"):
        done = moesim(command, "mixtral_vs_llama2", "--set", kind)
        assert done.returncode == 2, done.stderr
        assert "--allow-code" in done.stderr
        assert len(done.stderr.splitlines()) <= 2
    assert {path.name for path in elsewhere.iterdir()} == {"strangers", "pytz.py", "typer.py"}
    (elsewhere / "pytz.py").write_text("raise SystemExit('pytz ran')")
    allowed = moesim("check", "mixtral_vs_llama2", "--set", kind, "--allow-code", "--json")
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads(allowed.stdout)["kind"] == "scenario"
    assert (elsewhere / "ran").exists()


def looks(folder, number):
    """Whether this process may import from its current folder, and what it then makes."""
    _, pid = together(folder, number)
    try:
        return pid, routing("strangers.policy")
    except UserError:
        return pid, None


@pytest.mark.xdist_group("ray-apart")
@pytest.mark.parametrize("is_allowed", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_workers_may_import_what_the_process_may_that_sends_the_work(
    elsewhere, tmp_path_factory, ray, is_allowed
):
    trust.allow_code(elsewhere if is_allowed else None)
    with Workers(2) as pool:
        found = pool.map(partial(looks, tmp_path_factory.mktemp("begun")), range(4))
    assert len({pid for pid, _ in found}) == 2
    assert {made is not None for _, made in found} == {is_allowed}


def imports_stray(folder, number):
    """The process, and whether it finds a module that lies in the current folder."""
    _, pid = together(folder, number)
    try:
        import stray_module  # noqa: F401
    except ModuleNotFoundError:
        return pid, False
    return pid, True


@pytest.mark.xdist_group("ray-apart")
def test_rays_workers_do_not_look_into_the_current_folder(elsewhere, tmp_path_factory, ray):
    (elsewhere / "stray_module.py").write_text(LOUD)
    with Workers(2) as pool:
        found = pool.map(partial(imports_stray, tmp_path_factory.mktemp("begun")), range(4))
    assert len({pid for pid, _ in found}) == 2
    assert not any(is_found for _, is_found in found)
    assert not (elsewhere / "ran").exists()


def test_a_checkout_keeps_its_own_folder_for_worker_processes(tmp_path, monkeypatch):
    """Processes that are spawned get this ``sys.path`` and import moesim from it."""
    for current, is_kept in ((str(PROJECT), True), (str(tmp_path.resolve()), False)):
        monkeypatch.chdir(current)
        monkeypatch.setattr(sys, "path", [current, *sys.path])
        trust.forget_current_folder()
        assert (current in sys.path) == is_kept
