"""Small models and plans that the engine runs in milliseconds, for every test that needs a whole
deployment.
"""

import dataclasses
import os
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest

# Compiled once for all workers, for the commands that tests start, and for the next time.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".numba_cache"))
# Workers have the cores already, and threads of small products only wait for each other: with two
# of NumPy's, tests of routing took twice the CPU time. It looks for their number when imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from simulator.base import plugins
from simulator.base.data import find_file
from simulator.base.frozen import validate
from simulator.config.calibration.engine import UNSAID
from simulator.config.cluster import load_cluster
from simulator.config.deployment import DeploymentSpec
from simulator.config.model import ModelSpec
from simulator.deployment.plan import make_plan
from simulator.engine.timeline import run_plan, serve
from simulator.workload.traces import RequestTrace
from tests.parts import change_plan
from tests.tables import Tables

pytest_plugins = ["tests.suite", "tests.spent", "tests.draws"]


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    """Caches, findings, and what Ray writes of all that tests start: in folders of this session,
    and nothing of it is left over.
    """
    with (
        # Of a short path, since sockets lie in it.
        tempfile.TemporaryDirectory(
            prefix="m-", dir="/tmp", ignore_cleanup_errors=True
        ) as ray_folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.delenv("MOESIM_CACHE", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        browsers = (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms-playwright"
        )
        if browsers.is_dir() and "PLAYWRIGHT_BROWSERS_PATH" not in os.environ:
            patch.setenv(
                "PLAYWRIGHT_BROWSERS_PATH", str(browsers)
            )  # what is installed there is used, not written
        for variable in (
            "XDG_CACHE_HOME",
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",  # what the user has measured is none of the tests' business
            "TORCHINDUCTOR_CACHE_DIR",
        ):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
        patch.setenv("RAY_TMPDIR", ray_folder)
        yield
        assert os.listdir(ray_folder) == []


@pytest.fixture(scope="session", autouse=True)
def one_core():
    """Work that nobody said how many processes are for is done by this one: workers of pytest have
    the cores already, and a cluster of Ray's takes seconds to start.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.parallel.workers.count_cores", lambda: 1)
        yield


_GQA = 'kind = "gqa", num_heads = 16, num_kv_heads = 4, head_size = 64'
_MIXERS = {
    "full": f"{{ {_GQA} }}",
    "sliding": f"{{ {_GQA}, window = 128 }}",
    "latent": (
        '{ kind = "mla", num_heads = 16, query_rank = 256, kv_rank = 128, nope_head_size = 64, '
        "rope_head_size = 32, value_head_size = 64 }"
    ),
    "state": (
        '{ kind = "mamba2", num_heads = 16, head_size = 64, state_size = 64, '
        "num_groups = 4, conv_size = 4 }"
    ),
    "compressed": (
        '{ kind = "compressed", num_heads = 16, head_size = 64, query_rank = 256, window = 128, '
        "compression = 128, output_groups = 4, output_rank = 64 }"
    ),
}
_DENSE = '{ kind = "dense", intermediate_size = 2048 }'
_FFNS = {
    "dense": _DENSE,
    "moe": '{ kind = "moe", num_experts = 16, top_k = 2, intermediate_size = 1024 }',
    "shared": (
        '{ kind = "moe", num_experts = 32, top_k = 4, intermediate_size = 512, '
        "num_shared_experts = 1, shared_intermediate_size = 512 }"
    ),
    "one": '{ kind = "moe", num_experts = 1, top_k = 1, intermediate_size = 2048 }',
}
_MODELS = {
    "dense": [("full", "dense")],
    "moe": [("full", "moe")],
    "sliding-moe": [("sliding", "moe"), ("full", "moe")],
    "sliding-dense": [("sliding", "dense"), ("full", "dense")],
    "windows-only": [("sliding", "dense")],
    "latent-moe": [("latent", "shared")],
    "state-moe": [("state", "moe"), ("full", "moe")],
    "state-only": [("state", "dense")],
    "compressed-moe": [("compressed", "moe"), ("full", "moe")],
    "one-expert": [("full", "one")],
}


def _model_toml(name, num_layers):
    pattern = _MODELS[name]
    mixers = {mixer for mixer, _ in pattern}
    ffns = {ffn for _, ffn in pattern}
    return "\n".join(
        [
            "hidden_size = 1024",
            "vocab_size = 8192",
            'routing = { kind = "lognormal", sigma = 0.7, num_domains = 2 }'
            if ffns != {"dense"}
            else "",
            (
                f"layers = [{{ repeat = {num_layers // len(pattern)}, pattern "
                f"= {[list(layer) for layer in pattern]} }}]"
            ),
            "[mixers]",
            *(f"{mixer} = {_MIXERS[mixer]}" for mixer in sorted(mixers)),
            "[ffns]",
            *(f"{ffn} = {_FFNS[ffn]}" for ffn in sorted(ffns)),
        ]
    )


def _trace(
    num_requests=40, rate_per_s=400.0, longest_input=600, longest_output=24, seed=3, **changes
):
    """Poisson arrivals with uniform lengths."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, num_requests))
    return RequestTrace(
        arrival_s=arrival_s - arrival_s[0],
        num_input=rng.integers(1, longest_input + 1, num_requests),
        num_output=rng.integers(1, longest_output + 1, num_requests),
        provenance="made up",
        **changes,
    )


def _with_blocks(plan, num_blocks):
    """The same plan with a KV cache of so many blocks a rank."""
    kv_bytes = num_blocks * plan.serving.capacity.block_bytes
    return change_plan(plan, capacity=dataclasses.replace(plan.serving.capacity, kv_bytes=kv_bytes))


def _on(plan, cluster=None, accelerator=None, topology=None):
    """The same plan on other hardware: links and kernels priced anew."""
    cluster, accelerator = (
        cluster or plan.placement.cluster,
        accelerator or plan.placement.accelerator,
    )
    fabric = plugins.build("topology", topology or cluster.topology, "test").wire(
        cluster, plan.placement.layout.num_ranks
    )
    return change_plan(
        plan,
        cluster=cluster,
        accelerator=accelerator,
        fabric=fabric,
        compute=plugins.build("cost.compute", plan.spec.compute, "test").prepare(
            accelerator, plan.placement.calibration
        ),
        comm=plugins.build("cost.comm", plan.spec.communication, "test").prepare(
            fabric, plan.placement.calibration, plan.placement.accelerator
        ),
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """``tiny.plan("moe", attention_dp=4, ep=4)``, ``tiny.trace()``, ``tiny.model("latent-moe")``,
    ``tiny.cluster(16, 4)`` ...; ``tiny.run(plan, trace)`` and ``tiny.serve(plan, trace)``, of plans
    as they were made, share their tables.
    """
    folder = tmp_path_factory.mktemp("tiny")
    known, tables = {}, Tables()

    def model_path(name, num_layers=4):
        path = folder / f"{name}-{num_layers}.toml"
        if not path.exists():
            path.write_text(_model_toml(name, num_layers).replace("'", '"'))
        return path.name

    def model(name, num_layers=4):
        from simulator.base.reading import read_toml

        return validate(
            ModelSpec, {"name": name, **read_toml(folder / model_path(name, num_layers))}, name
        )

    def plan(
        name,
        *,
        num_layers=4,
        replicas=1,
        seed=1,
        cluster="h100-sxm-16",
        tp=1,
        attention_dp=1,
        ep=None,
        pp=1,
        **keys,
    ):
        shipped = find_file_or_none(name)
        parallel = {"tp": tp, "attention_dp": attention_dp, "ep": ep, "pp": pp}
        key = repr((name, num_layers, replicas, seed, cluster, parallel, keys))
        if key not in known:
            table = {
                "name": name,
                "model": name if shipped else model_path(name, num_layers),
                "cluster": cluster,
                "parallel": parallel,
                "replicas": replicas,
                # No release, whose own times may move with a fit: tests say when GPUs fail.
                "engine": f"vllm@{UNSAID}",
                **keys,
            }
            known[key] = make_plan(validate(DeploymentSpec, table, "test"), seed, "test", folder)
        return known[key]

    def cluster(num_gpus, gpus_per_node=8):
        spec, _ = load_cluster("h100-sxm-128", "test")
        return spec.model_copy(update={"num_gpus": num_gpus, "gpus_per_node": gpus_per_node})

    return SimpleNamespace(
        folder=folder,
        plan=plan,
        model=model,
        trace=_trace,
        with_blocks=_with_blocks,
        on=_on,
        cluster=cluster,
        models=_MODELS,
        tables=tables,
        run=partial(run_plan, fill=tables.fill),
        serve=partial(serve, fill=tables.fill),
    )


@pytest.fixture(scope="session")
def read_command():
    """Typer's reading of a command line from its functions, once for all tests."""
    from typer.main import get_command

    return cache(get_command)


@pytest.fixture
def moesim(tmp_path, monkeypatch, capsys, read_command):
    """Run the command in this process, in an empty folder; returns exit status, standard output and
    standard error.
    """
    from simulator import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("typer.main.get_command", read_command)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["moesim", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for a test outside tests/runtime."""
    return pytest.importorskip("torch", reason="needs pip install 'moesim[real]'")


@pytest.fixture(scope="session")
def ray():
    """Ray, for a test outside tests/runtime."""
    return pytest.importorskip("ray", reason="needs pip install 'moesim[real]'")


def find_file_or_none(name):
    """Whether a model is shipped under this name."""
    if name in _MODELS:
        return None
    return find_file("workloads/models", name, "test")
