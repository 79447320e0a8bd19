"""Adding an accelerator, a cluster, a model, a policy or a figure is one new file, which appears by
itself.
"""

import json
import shutil
import subprocess
import sys

import pytest

from tests.contracts.processes import PROJECT, moesim

pytestmark = pytest.mark.slow  # each starts a process
STEPS = "deployments.*.scheduling={ kind = 'chunked', token_budget = 256, max_sequences = 64 }"
FEW = ("--set", "workload.num_requests=20", "--set", STEPS)
"""Requests in small steps, whose tables are soon filled."""
SHORT = ("run", "mixtral_vs_llama2", *FEW, "--json", "--out", "out")


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


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with files of the user's own, and what commands say there."""
    folder = tmp_path_factory.mktemp("own")
    machines, models = folder / "cluster_configs", folder / "workloads/models"
    gpus = machines / "accelerators"
    for place in (gpus, models):
        place.mkdir(parents=True)
    shipped = (PROJECT / "cluster_configs/accelerators/h100-sxm.toml").read_text()
    (gpus / "h900.toml").write_text(shipped.replace("NVIDIA H100", "NVIDIA H900"))
    machine = (PROJECT / "cluster_configs/h100-sxm.toml").read_text()
    (machines / "h900-box.toml").write_text(machine.replace('"h100-sxm"', '"h900"'))
    shutil.copy(PROJECT / "workloads/models/mixtral-8x7b.toml", models / "my-mixtral.toml")
    box = ("--set", "deployments.0.model=my-mixtral", "--set", "deployments.*.cluster=h900-box-8")
    commands = {
        "accelerators": ("list", "accelerators", "--json"),
        "models": ("list", "models", "--json"),
        "run": (*SHORT, *box),
    }
    return folder, dict(zip(commands, moesim(folder, *commands.values()), strict=True))


def test_an_accelerator_a_cluster_and_a_model_of_the_users_own(own):
    folder, said = own
    assert "h900" in said["accelerators"].answer["accelerators"]
    assert "my-mixtral" in said["models"].answer["models"]
    assert said["run"].status == 0, said["run"].err
    facts = json.loads((folder / "out" / "run.json").read_text())["deployments"]
    assert all("H900" in entry["accelerator"] for entry in facts.values())


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the package as a wheel puts it, with a file more in two of its families."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "installed"
    source.mkdir()
    for name in ("simulator", "workloads", "cluster_configs", "docs/guides"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    options = ("--quiet", "--no-deps", "--target", str(target))
    install = [sys.executable, "-m", "pip", "install", *options, str(source)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (target / "simulator/policies/routing/neighbours.py").write_text(ROUTING)
    (target / "simulator/report/figures/number.py").write_text(FIGURE)
    return target


@pytest.mark.parametrize(
    "path",
    [
        "_data/workloads/models/mixtral-8x7b.toml",
        "_data/cluster_configs/h100-sxm.toml",
        "_data/docs/guides/balancing.md",
        "report/assets/page.css",
        "report/assets/plotly-cartesian.min.js.gz",
        "report/templates/plan.html",
        "py.typed",
        "__init__.pyi",
    ],
)
def test_the_wheel_holds_its_data(installed, path):
    assert (installed / "simulator" / path).is_file()


def test_a_wheel_runs_from_any_folder_with_a_routing_policy_and_a_figure_of_one_file_each(
    installed, tmp_path
):
    own = (*SHORT, "--set", "deployments.0.routing.kind=neighbours")
    begin = ("new", "balancing", "mine")
    listed, begun, *runs = moesim(
        tmp_path, ("list", "routing", "--json"), begin, own, SHORT, path=installed
    )
    assert begun.status == 0, begun.err
    assert (tmp_path / "my_package" / "test_mine.py").is_file()
    assert listed.answer["routing"]["neighbours"].startswith("Every token goes to experts")
    even, uneven = (one.answer["summary"][0]["load_imbalance"] for one in runs)
    assert even < uneven  # every expert is drawn as often as any other
    assert "A figure from one new file" in (tmp_path / "out" / "report.html").read_text()
