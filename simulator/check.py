"""Is this file right? Everything that ``run`` would refuse, without running; and the JSON Schema of each kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from simulator.errors import UserError, did_you_mean
from simulator.fit import check_requests
from simulator.plan import make_plan
from simulator.scenario import Scenario, load_scenario
from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.base import validate
from simulator.spec.calibration import Calibration
from simulator.spec.cluster import ClusterSpec
from simulator.spec.loading import read_json, read_toml
from simulator.spec.model import ModelSpec, load_model
from simulator.workload import load_requests

_KINDS: dict[str, type[BaseModel]] = {
    "scenario": Scenario,
    "model": ModelSpec,
    "accelerator": AcceleratorSpec,
    "cluster": ClusterSpec,
    "calibration": Calibration,
}
_TELLING_KEYS = {
    "deployments": "scenario",
    "mixers": "model",
    "memory_bytes_per_s": "accelerator",
    "gemm": "calibration",
    "topology": "cluster",
}


def check_file(file: Path, overrides: list[str]) -> str:
    """Check a file of any kind, told by its keys; the answer is a line for the user.

    Raises:
        UserError: with what is wrong.
    """
    if file.suffix == ".json":
        read_json(file)
        return _model_line(file)
    table = read_toml(file)
    kind = next((kind for key, kind in _TELLING_KEYS.items() if key in table), None)
    if kind is None:
        raise UserError(f"{file}: is none of the files that moesim knows ({', '.join(_KINDS)}): it has none of their keys")
    if kind == "model":
        return _model_line(file)
    if kind == "scenario":
        return _check_scenario(file, overrides)
    defaults: dict[str, Any] = {"name": file.stem}
    if kind == "cluster":
        defaults["num_gpus"] = (table.get("sizes") or [table.get("gpus_per_node", 1)])[0]
    validate(_KINDS[kind], {**defaults, **table} if kind != "calibration" else table, str(file))
    return f"{file}: a valid {kind}"


def _model_line(file: Path) -> str:
    model = load_model(str(file), str(file))
    total, active = model.num_parameters, model.num_active_parameters
    return f"{file}: a valid model, {total / 1e9:,.2f} B parameters, {active / 1e9:,.2f} B active, {model.num_layers} layers"


def _check_scenario(file: Path, overrides: list[str]) -> str:
    scenario, path = load_scenario(str(file), overrides)
    folder = path.resolve().parent
    plans = [make_plan(deployment, scenario.seed, str(path), folder) for deployment in scenario.deployments]
    trace = load_requests(scenario.workload, folder, scenario.seed, f"{path} [workload]")
    for plan in plans:
        check_requests(plan.capacity, int((trace.num_input + trace.num_output).max()), f"deployment '{plan.name}'")
    fits = "; ".join(
        f"{p.name}: {p.num_gpus} GPUs, KV cache of {p.capacity.tokens * p.layout.attention_dp:,} tokens a replica" for p in plans
    )
    return f"{file}: a valid scenario, {trace.num_requests:,} requests; {fits}"


def schema_of(kind: str) -> dict[str, Any]:
    """JSON Schema of one kind of file.

    Raises:
        UserError: if there is no such kind.
    """
    if kind not in _KINDS:
        raise UserError(f"schema: unknown kind '{kind}'; {did_you_mean(kind, _KINDS)}")
    return _KINDS[kind].model_json_schema()
