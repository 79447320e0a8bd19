"""The command as a user meets it."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from simulator import __main__ as command
from simulator.base.data import available_files
from simulator.cli import console
from simulator.cli.console import Screen
from simulator.cli.run import print_run
from simulator.results.folder import Results
from simulator.runtime.stopping import stop_on_signal
from tests.cases import times
from tests.shared import SHARED, each_shared

PROJECT = Path(__file__).parents[2]
STEPS = "deployments.*.scheduling={ kind = 'chunked', token_budget = 256, max_sequences = 64 }"
SHORT = ("mixtral_vs_llama2", "--set", "workload.num_requests=60", "--set", STEPS)
"""Few requests in small steps, whose tables are soon filled."""


def test_a_defect_is_ours_with_a_traceback(moesim, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("made for the test")

    monkeypatch.setattr("simulator.commands.run.run", broken)
    code, _, err = moesim("run", *SHORT)
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "defect" in err


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_ctrl_c_is_no_defect_whatever_a_library_makes_of_it(moesim, monkeypatch, raised):
    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise raised from None

    monkeypatch.delitem(sys.modules, "ray", raising=False)  # beside it the process ends at once
    monkeypatch.setattr("simulator.commands.run.run", interrupted)
    assert moesim("run", *SHORT) == (130, "", "stopped; nothing was written\n")


def test_ctrl_c_while_the_command_is_imported_ends_it_as_later(monkeypatch, capsys):
    class Interrupts:
        def find_spec(self, name, path=None, target=None):
            if name == "simulator.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "simulator.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"


STRANGER = ("unshare", "--user", "--map-user=54321", "--map-group=54321", "--")
"""Runs a command as a user who is in no list of users, and to whom permissions apply."""
GONE = "the current folder was removed, or cannot be read"
NO_HOME = "there is no home folder for caches"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "variables", "command", "status", "said"),
    [
        ("gone", {}, "--version", 0, ""),
        ("gone", {}, "list models", 0, ""),
        ("gone", {}, "check mixtral_vs_llama2", 2, GONE),
        ("closed", {}, "--version", 0, ""),
        ("closed", {}, "run mixtral_vs_llama2", 2, "no permission to write"),
        ("closed", {"TMPDIR": "locked", "RAY_TMPDIR": "locked"}, "list models", 0, ""),
        ("open", {"HOME": None}, "new scenario mine", 0, ""),
        ("open", {"HOME": None}, "cache info", 2, NO_HOME),
        ("open", {"HOME": "file"}, "cache info", 0, ""),
        ("open", {"HOME": None}, "trace info ~nobody-of-this-name/log.csv", 2, "no such file"),
        ("open", {"XDG_CACHE_HOME": "locked"}, "cache info", 2, "Permission denied"),
        ("open", {"TMPDIR": "gone", "RAY_TMPDIR": "file"}, "list models", 0, ""),
    ],
)
def test_no_folder_ends_a_command_in_a_traceback(
    tmp_path, folder, variables, command, status, said
):
    """Whether the current folder, the home, or those for caches and temporary files."""
    if subprocess.run([*STRANGER, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    (tmp_path / "file").touch()
    for name, mode in (("gone", 0o755), ("open", 0o755), ("closed", 0o500), ("locked", 0)):
        (tmp_path / name).mkdir(mode)
    told = {name: value and str(tmp_path / value) for name, value in variables.items()}
    kept = dict.fromkeys(("NUMBA_CACHE_DIR", "MOESIM_CACHE", "XDG_CACHE_HOME"))
    known = {**os.environ, **kept, "PYTHONPATH": str(PROJECT), **told}
    done = subprocess.run(
        [*STRANGER, sys.executable, "-m", "simulator", *command.split()],
        cwd=tmp_path / folder,
        env={name: value for name, value in known.items() if value is not None},
        preexec_fn=lambda: folder == "gone" and (tmp_path / folder).rmdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    written = {path.name for path in (tmp_path / "open").iterdir()}
    assert written == ({"mine.toml"} if command.startswith("new") else set())


def test_an_error_that_a_library_makes_of_an_interrupt_is_one():
    def build():  # as pydantic's compiled code does
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise ValueError("Field 'kind': KeyboardInterrupt")

    with pytest.raises(KeyboardInterrupt), stop_on_signal():
        build()
    with stop_on_signal():
        time.sleep(0.1)  # it does not come again in another context
    with pytest.raises(ValueError, match="own"), stop_on_signal():
        raise ValueError("own")


DROPPING = """
import ctypes, os, signal, sys, time, weakref
from simulator.runtime.stopping import stop_on_signal

signal.signal(signal.SIGINT, signal.default_int_handler)
asked, dropped = int(sys.argv[1]), []

def stop(*_):
    dropped.append(1)
    os.kill(os.getpid(), asked)
    time.sleep(1)

class Thing:
    def __del__(self):
        stop()

def catch():
    try:
        stop()
    except:
        pass

try:
    with stop_on_signal():
        thing = Thing()
        known = weakref.ref(thing, stop)
        del thing  # drops two
        ctypes.CFUNCTYPE(None)(stop)()
        catch()
        time.sleep(60)
except KeyboardInterrupt:
    print(len(dropped), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
time.sleep(0.2)  # nothing comes afterwards
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_comes_again_where_a_callback_or_a_library_drops_it(asked):
    done = subprocess.run(
        [sys.executable, "-c", DROPPING, str(int(asked))],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("4 True\n", "", 0)


@pytest.mark.seeded
@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_of_the_start_ends_the_command_in_a_line(tmp_path, asked):
    """Python, before it has come to the command and after, ends by the signal itself."""
    chance, ends = random.Random(int(asked)), []
    for _ in range(times(10, soak=100)):
        running = subprocess.Popen(
            [sys.executable, "-m", "simulator", "check", "mixtral_vs_llama2"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(chance.uniform(0.2, 1.2))
        running.send_signal(asked)
        out, err = running.communicate(timeout=60)
        ends.append(running.returncode)
        assert ends[-1] in (0, 130, -asked), err
        assert (ends[-1] == 130) == (err == "stopped; nothing was written\n"), err
        assert ends[-1] != 0 or "a valid scenario" in out
    assert 130 in ends


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "workloads",
        "workloads/models",
        "workloads/plans",
        "cluster_configs",
        "cluster_configs/accelerators",
        "cluster_configs/calibration",
    ],
)
def test_check_finds_every_shipped_file_right(moesim, family):
    for path in available_files(family).values():
        code, _, err = moesim("check", path)
        assert code == 0, err


def test_columns_of_a_log_are_named_by_options(moesim, tmp_path):
    Path("log.csv").write_text("evt_epoch,ctx_toks,gen_toks\n1700000000,10,1\n1700000001,11,2\n")
    named = [f"--column={one}" for one in ("arrival=evt_epoch", "input=ctx_toks")]
    assert moesim("trace", "info", "log.csv")[0] == 2
    assert (
        moesim("trace", "convert", "log.csv", "a.csv", *named, "--column=output=gen_toks")[0] == 0
    )
    assert Path("a.csv").read_text().splitlines() == [
        "arrival_s,num_input,num_output",
        "0.0,10,1",
        "1.0,11,2",
    ]
    assert moesim("trace", "info", "sharegpt-like", *named)[0] == 2


def test_help_is_quick_because_it_loads_nothing_heavy():
    heavy = ("torch", "ray", "numba", "pandas", "plotly", "simpy", "scipy", "jinja2", "pyarrow")
    program = (
        "import sys\nsys.argv = ['moesim', '--help']\nfrom simulator.cli import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    pass\nprint([n for n in {heavy} if n in "
        "sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, check=True
    )
    assert "run" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    asked = ("run", "deepseek_v3_vs_llama_405b", "--out", str(tmp_path / "out"))
    running = subprocess.Popen(
        [sys.executable, "-m", "simulator", *asked],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A test runner in the background ignores Ctrl-C, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stderr.readline()  # the first deployment has begun
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_error():
    for arguments in ("schema", "list --markdown", "list clusters"):
        command = f"{sys.executable} -m simulator {arguments} | head -n 1"
        done = subprocess.run(
            ["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        assert len(done.stdout.splitlines()) == 1
        assert done.stderr == ""


@pytest.mark.slow
def test_report_puts_runs_together_and_leaves_their_own_reports_alone(moesim, tmp_path):
    moesim("run", *SHORT, "--out", "one")
    before = (tmp_path / "one" / "report.html").read_bytes()
    moesim("run", *SHORT, "--out", "two", "--set", "deployments.0.placement.kind=greedy")
    printed = json.loads(moesim("report", "one", "two", "--json")[1])
    assert printed["verdict"]["headline"]
    assert (tmp_path / "one" / "report.html").read_bytes() == before
    assert "(two)" in (tmp_path / "one" / "comparison.html").read_text()


@pytest.mark.slow
def test_on_a_terminal_no_line_is_wider_than_it(moesim, monkeypatch, capsys):
    moesim("run", *SHORT, "--out", "run")
    for columns in (80, 100):
        monkeypatch.setattr(
            console, "out", Screen(force_terminal=True, width=columns, color_system=None)
        )
        for arguments in (("list",), ("list", "clusters"), ("trace", "info", "azure-conv")):
            code, out, _ = moesim(*arguments)
            assert code == 0
            assert max(len(line) for line in out.splitlines()) <= columns
        print_run(Results.read(Path("run")))
        printed = capsys.readouterr().out
        assert max(len(line) for line in printed.splitlines()) <= columns
        table = printed.split("\n\n")[-1].splitlines()
        assert any(line.startswith("TTFT p50") for line in table)
        assert all(len(line.split()) >= 3 for line in table[1:]), "a label or a value was wrapped"


FILES = (
    path
    for path in sorted((SHARED / "traces/requests").rglob("*"))
    if path.is_file() and not path.name.startswith("LICENSE")
)


@pytest.mark.slow
@pytest.mark.measured
@pytest.mark.parametrize("source", each_shared(FILES), ids=lambda path: path.name)
def test_real_traces_survive_conversion(moesim, source):
    code, out, err = moesim("trace", "info", source, "--json")
    assert code == 0, err
    assert moesim("trace", "convert", source, "own.parquet")[0] == 0
    own = json.loads(moesim("trace", "info", "own.parquet", "--json")[1])
    theirs = json.loads(out)
    told = ("source", "provenance", "notes")
    assert {k: v for k, v in own.items() if k not in told} == {
        k: v for k, v in theirs.items() if k not in told
    }


def test_one_of_a_family_is_shown_with_its_keys_or_its_file(moesim):
    zipf = json.loads(moesim("list", "routing", "zipf", "--json")[1])
    keys = {key["path"]: (key["bounds"], key["default"]) for key in zipf["keys"]}
    assert keys == {"kind": ("", None), "exponent": ("0 to 20", None)}
    code, shown, _ = moesim("list", "clusters", "h100-sxm-8")
    assert code == 0
    assert tomllib.loads(shown)["gpus_per_node"] == 8
    assert "mixtral-8x7b" in moesim("list", "models", "mixtral")[2]


def test_figures_rest_on_what_was_measured_or_is_assumed(moesim):
    found = json.loads(moesim("supports", "mixtral-8x7b", "h100-sxm", "--json")[1])
    kinds = {one["what"]: one["kind"] for one in found["assumptions"]}
    assert kinds["bf16 experts"] == "fitted"
    assert kinds["routing"] == "measured"
    assert any("no serving points of Mixtral 8x7B" in note for note in found["notes"])
    for wrong in (("mixtral-8x7b", "phone-snapdragon-8-elite"), ("a,b", "h100-sxm")):
        assert moesim("supports", *wrong)[0] == 2
