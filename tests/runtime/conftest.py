"""Jobs, models and texts small enough to execute in milliseconds or to learn from in seconds."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.parts import change_plan

if not (find_spec("torch") and find_spec("ray")):
    pytest.skip("needs pip install 'moesim[real]'", allow_module_level=True)


@pytest.fixture
def no_gradients():
    import torch

    with torch.no_grad():
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small gain nothing from threads, which wait for each other where the cores have
    other work, and take half as much of the CPU again.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded():
    """``loaded("dense")`` or ``loaded("mixtral-8x7b")``: a model with its seed's weights."""
    from simulator.runtime.layers.transformer import Transformer
    from simulator.runtime.layers.weights import SeededWeights
    from tests.runtime.small_models import SPECS, shrunk

    known = {}

    def get(name):
        if name not in known:
            known[name] = Transformer(SPECS[name] if name in SPECS else shrunk(name))
            known[name].load(SeededWeights(1))
        return known[name]

    return get


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two domains of four files each, and what is no text."""
    from tests.runtime.small_training import WORDS

    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for domain, words in WORDS.items():
        (folder / domain).mkdir()
        for number in range(4):
            (folder / domain / f"{number}.txt").write_text(" ".join(rng.choice(words, 400)))
    (folder / "prose" / "picture.bin").write_bytes(b"\x00\x01" * 5000)
    (folder / "prose" / "latin.txt").write_bytes(b"\xe9t\xe9 " * 5000)
    (folder / ".hidden").write_text("not to be read " * 500)
    return folder


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """``real.plan(num_experts=8, top_k=2, attention_dp=2, ep=2)``, ``real.job(plan)``."""
    from simulator.base.frozen import validate
    from simulator.config.deployment import DeploymentSpec
    from simulator.deployment.plan import make_plan
    from simulator.runtime.job import make_job

    folder = tmp_path_factory.mktemp("real")

    def model(num_experts=0, top_k=1, width=32, num_layers=2, **keys):
        ffn = f'kind = "dense", intermediate_size = {width}'
        if num_experts:
            ffn = (
                f'kind = "moe", num_experts = {num_experts}, top_k = {top_k}, '
                f"intermediate_size = {width}"
            )
        ffn += "".join(f", {key} = {_toml(value)}" for key, value in keys.items())
        text = f"""
            hidden_size = 32
            vocab_size = 64
            layers = [{{ repeat = {num_layers}, pattern = [["full", "ffn"]] }}]
            [mixers]
            full = {{ kind = "gqa", num_heads = 4, num_kv_heads = 4, head_size = 8 }}
            [ffns]
            ffn = {{ {ffn} }}
            """
        path = folder / f"model-{abs(hash(text))}.toml"
        path.write_text(text)
        return path.name

    def plan(model_keys=None, *, tp=1, attention_dp=1, ep=None, seed=1, **keys):
        model_keys = model_keys or {}
        table = {
            "name": "tiny",
            "model": model(**model_keys),
            "cluster": "h100-sxm-8",
            "replicas": 1,
            "parallel": {"tp": tp, "attention_dp": attention_dp, "ep": ep},
            "weight_dtype": "fp32",
            "dispatch_dtype": "fp32",
            "combine_dtype": "fp32",
            **({"routing": {"kind": "uniform"}} if model_keys.get("num_experts") else {}),
            **keys,
        }
        return make_plan(validate(DeploymentSpec, table, "test"), seed, "test", folder)

    def with_choices(a_plan, topk_ids_TK):
        """The plan with these choices in every layer, over and over."""
        pool_LTK = a_plan.placement.experts.topk_ids_LTK
        rows = np.resize(np.asarray(topk_ids_TK, dtype=np.int16), pool_LTK.shape)
        return change_plan(
            a_plan, experts=dataclasses.replace(a_plan.placement.experts, topk_ids_LTK=rows)
        )

    return SimpleNamespace(
        model=model,
        plan=plan,
        job=lambda a_plan, where=folder: make_job(a_plan, Path(where)),
        with_choices=with_choices,
        folder=folder,
    )


def _toml(value):
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )


@pytest.fixture(scope="module")
def nodes():
    """Four simulated nodes of Ray's, of whose processes none is left."""
    from tests.runtime.ray_nodes import open_nodes

    with open_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def job(real, tiny):
    """Experts with copies on four nodes of one rank each."""
    from tests.runtime.ray_nodes import make_job

    return make_job(real, tiny)


@pytest.fixture(scope="module")
def reference(job):
    """The whole model of that job in one process."""
    from simulator.runtime.reference import Reference

    return Reference(job)
