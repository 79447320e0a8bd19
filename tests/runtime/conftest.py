"""Jobs small enough to execute in milliseconds."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """``real.plan(num_experts=8, top_k=2, attention_dp=2, ep=2)``, ``real.job(plan)``."""
    pytest.importorskip("torch")
    from simulator.base.frozen import validate
    from simulator.config.deployment import DeploymentSpec
    from simulator.deployment.plan import make_plan
    from simulator.runtime.job import make_job

    folder = tmp_path_factory.mktemp("real")

    def model(num_experts=0, top_k=1, width=32, num_layers=2, **keys):
        ffn = f'kind = "dense", intermediate_size = {width}'
        if num_experts:
            ffn = f'kind = "moe", num_experts = {num_experts}, top_k = {top_k}, intermediate_size = {width}'
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
        pool_LTK = a_plan.experts.topk_ids_LTK
        rows = np.resize(np.asarray(topk_ids_TK, dtype=np.int16), pool_LTK.shape)
        return dataclasses.replace(
            a_plan, experts=dataclasses.replace(a_plan.experts, topk_ids_LTK=rows)
        )

    return SimpleNamespace(
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
