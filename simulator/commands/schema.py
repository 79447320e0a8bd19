"""``moesim schema``: the JSON Schema of each kind of file, as editors complete and check it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from simulator.base.errors import check_known
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import CalibrationFile
from simulator.config.capacity import Question
from simulator.config.claim import ClaimFile
from simulator.config.cluster import ClusterSpec
from simulator.config.engine import EngineSpec
from simulator.config.host import HostCalibration
from simulator.config.law_file import LawFile
from simulator.config.model import ModelSpec
from simulator.config.training_question import TrainingQuestion
from simulator.config.workload import NamedWorkloadSpec
from simulator.results.answer import Answer
from simulator.scenario.scenario import Scenario
from simulator.scenario.training import TrainingScenario

FILES: dict[str, type[BaseModel]] = {
    "scenario": Scenario,
    "plan": Question,
    "training": TrainingScenario,
    "training plan": TrainingQuestion,
    "workload": NamedWorkloadSpec,
    "model": ModelSpec,
    "law": LawFile,
    "claim": ClaimFile,
    "accelerator": AcceleratorSpec,
    "cluster": ClusterSpec,
    "engine": EngineSpec,
    "calibration": CalibrationFile,
    "host calibration": HostCalibration,
}
"""Model that validates each kind of file."""
WRITTEN: dict[str, type[BaseModel]] = {"answer": Answer}
"""Model of each kind of file that is written, not read: ``plan.json`` of ``moesim plan``."""

_SAID_BY_THE_NAME = ("name", "num_gpus")
"""Keys that a file may leave to its name, and a cluster to the name of its size."""


def make_schema(kind: str) -> dict[str, Any]:
    """JSON Schema of one kind of file, with the unit of numbers under the keyword ``unit`` and the
    family of policies under ``family``.

    Raises:
        UserError: if there is no such kind.
    """
    schema = describe_whole(kind)
    required = schema.pop("required")
    if kind == "calibration":  # its other tables may be files of the folder beside it
        required = ["title"]
    schema |= _require(schema, required)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def describe_whole(kind: str) -> dict[str, Any]:
    """JSON Schema of a whole file of a kind: one with all that its folder and the file that it is
    based on may hold for it.

    Raises:
        UserError: if there is no such kind.
    """
    kinds = FILES | WRITTEN
    check_known(kind, kinds, "schema: unknown kind")
    schema = kinds[kind].model_json_schema()
    required = [key for key in schema.get("required", ()) if key not in _SAID_BY_THE_NAME]
    return schema | {"required": required}


def _require(schema: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Keywords that ask for the required keys, unless the file is based on another one that may
    have them.
    """
    if "based_on" not in schema["properties"]:
        return {"required": required}
    whole: dict[str, Any] = {"required": required}
    if "MemoryRules" in schema["$defs"]:  # an engine's tables are completed key by key
        memory = schema["$defs"]["MemoryRules"]
        whole["properties"] = {"memory": {"required": memory.pop("required")}}
    return {"if": {"required": ["based_on"]}, "else": whole}
