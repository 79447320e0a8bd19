"""Adding an accelerator, a cluster, a model, a policy or a figure is one new file, which appears by
itself.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts several commands
PROJECT = Path(__file__).parents[2]
UNFINISHED = shutil.ignore_patterns("*.tmp.*", "*.pyc.*")
"""Files that another worker is writing."""
STEPS = "deployments.*.scheduling={ kind = 'chunked', token_budget = 256, max_sequences = 64 }"
FEW = ("--set", "workload.num_requests=20", "--set", STEPS)
"""Requests in small steps, whose tables are soon filled."""
SHORT = ("run", "mixtral_vs_llama2", *FEW, "--out", "out", "--json")


def moesim(cwd, *arguments, path=PROJECT):
    """Run the command in a folder, with the package that lies in ``path``."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-m", "simulator", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def listed(cwd, family, path=PROJECT):
    return json.loads(moesim(cwd, "list", family, "--json", path=path).stdout)[family]


def test_an_accelerator_a_cluster_and_a_model_of_the_users_own(tmp_path):
    gpus, machines, models = (
        tmp_path / name
        for name in ("cluster_configs/accelerators", "cluster_configs", "workloads/models")
    )
    gpus.mkdir(parents=True)
    models.mkdir(parents=True)
    shipped = (PROJECT / "cluster_configs/accelerators/h100-sxm.toml").read_text()
    (gpus / "h900.toml").write_text(shipped.replace("NVIDIA H100", "NVIDIA H900"))
    machine = (PROJECT / "cluster_configs/h100-sxm.toml").read_text()
    (machines / "h900-box.toml").write_text(machine.replace('"h100-sxm"', '"h900"'))
    shutil.copy(PROJECT / "workloads/models/mixtral-8x7b.toml", models / "my-mixtral.toml")
    assert "h900" in listed(tmp_path, "accelerators")
    assert "my-mixtral" in listed(tmp_path, "models")
    own = ("--set", "deployments.0.model=my-mixtral", "--set", "deployments.*.cluster=h900-box-8")
    done = moesim(tmp_path, *SHORT, *own)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["deployments"]
    assert all("H900" in entry["accelerator"] for entry in facts.values())


ROUTING = (PROJECT / "docs/guides/routing.md").read_text().split("```python\n")[1].split("```")[0]
"""The example of a policy, as people read it."""

FIGURE = '''"""How many requests."""

import plotly.graph_objects as go

from simulator.report.gallery import Figure


class Number(Figure):
    """One bar."""

    title = "A figure from one new file"
    section = "Mine"
    definition = "Requests that were served."
    absent = "There is always one."
    order = 999

    def draw(self, results):
        return go.Figure(go.Bar(x=results.deployments, y=results.summary["num_requests"]))
'''


@pytest.fixture
def copied(tmp_path):
    """A copy of the package and its data, to add files to."""
    for name in ("simulator", "workloads", "cluster_configs"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=UNFINISHED)  # with what is compiled
    return tmp_path


def test_a_routing_policy_and_a_figure_are_one_file_each(copied):
    (copied / "simulator/policies/routing/neighbours.py").write_text(ROUTING)
    (copied / "simulator/report/figures/number.py").write_text(FIGURE)
    assert (
        listed(copied, "routing", path=copied)["neighbours"]
        == "Every token goes to experts that lie side by side: the worst case of a contiguous placement."
    )
    done = moesim(copied, *SHORT, "--set", "deployments.0.routing.kind=neighbours", path=copied)
    assert done.returncode == 0, done.stderr
    usual = moesim(copied, *SHORT, path=copied)
    even, uneven = (json.loads(one.stdout)["summary"][0]["load_imbalance"] for one in (done, usual))
    assert even < uneven  # every expert is drawn as often as any other
    assert "A figure from one new file" in (copied / "out" / "report.html").read_text()


def test_a_policy_outside_the_project(tmp_path):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "neighbours.py").write_text(ROUTING)
    allowed = (*SHORT, "--allow-code")
    done = moesim(tmp_path, *allowed, "--set", "deployments.0.routing.kind=my_package.neighbours")
    assert done.returncode == 0, done.stderr
    (package / "empty.py").write_text('"""Nothing."""')
    for kind in ("my_package.empty", "my_package.absent"):
        done = moesim(tmp_path, *allowed, "--set", f"deployments.0.routing.kind={kind}")
        assert done.returncode == 2
        assert kind in done.stderr


def test_the_wheel_holds_its_data_and_runs_from_any_folder(tmp_path):
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("simulator", "workloads", "cluster_configs"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(source),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    for path in (
        "_data/workloads/models/mixtral-8x7b.toml",
        "_data/cluster_configs/h100-sxm.toml",
        "report/assets/page.css",
        "report/assets/plotly-cartesian.min.js.gz",
        "report/templates/plan.html",
        "py.typed",
        "__init__.pyi",
    ):
        assert (target / "simulator" / path).is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = moesim(elsewhere, *SHORT, path=target)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "out" / "report.html").is_file()
