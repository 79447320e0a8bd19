"""Every key that a file may hold is described, and the schemas say of the shipped files what moesim
says of them.
"""

import re
import tomllib
from functools import cache

import pytest
from jsonschema import Draft202012Validator

from simulator.base.data import shipped_folder
from simulator.commands.new import FOLDERS, read_template
from simulator.commands.schema import FILES, describe_keys, make_schema

PURE = re.compile(
    "share|factor|ratio|number|times|probability|probabilities|coefficient|exponent|power|seed|deviation|score|"
    "correlation|percentile|relative|unit|gib|mib|seconds|bytes|tokens|rows|features|sequences|"
    "gpus|nodes|replicas|requests|deployments|candidates|slots|cost|joules|measured over|band",
    re.IGNORECASE,
)
"""Words of a description that say the unit of a number, or what it counts or compares."""
SHIPPED = {
    "scenario": "workloads",
    "plan": "workloads/plans",
    "training": "workloads/training",
    "training plan": "workloads/training_plans",
    "workload": "workloads/requests",
    "model": "workloads/models",
    "law": "workloads/laws",
    "claim": "workloads/claims",
    "accelerator": "cluster_configs/accelerators",
    "cluster": "cluster_configs",
    "engine": "cluster_configs/engines",
    "calibration": "cluster_configs/calibration",
}


described = cache(describe_keys)


def keys():
    for family, kinds in described().items():
        for kind in kinds.values():
            for key in kind.keys:
                yield f"{family} {kind.name}: {key.path}", key


def test_every_key_is_described():
    found = list(keys())
    assert len(found) > 700
    wrong = [where for where, key in found if not key.description.endswith((".", ").", "``."))]
    assert not wrong, f"write a docstring under these fields: {wrong}"


def test_every_number_has_a_unit_or_says_what_it_compares():
    wrong = [
        where
        for where, key in keys()
        if "number" in key.type
        and "table" not in key.type  # whose keys have units of their own
        and not key.unit
        and not PURE.search(key.description)
    ]
    assert not wrong, f"give these a unit, by the quantity or in the description: {wrong}"


def test_every_kind_of_every_family_is_described():
    wrong = [
        f"{family} {kind.name}"
        for family, kinds in described().items()
        for kind in kinds.values()
        if not kind.description
    ]
    assert not wrong


def test_a_key_of_alternative_tables_is_listed_once_and_says_where_it_belongs():
    for family, kinds in described().items():
        for kind in kinds.values():
            paths = [key.path for key in kind.keys]
            assert len(set(paths)) == len(paths), f"{family} {kind.name}"
    found = {key.path: key for key in described()["files"]["scenario"].keys}
    pruning = "deployments[].pruning"
    assert found[f"{pruning}.kind"].type == '"unstructured" or "two_four" or "block"'
    assert found[f"{pruning}.kind"].within == ""
    assert found[f"{pruning}.sparsity"].within == 'kind = "unstructured" or kind = "block"'
    assert "Share of the blocks that are gone." in found[f"{pruning}.sparsity"].description
    assert found[f"{pruning}.block_size"].within == 'kind = "block"'
    joint = {key.path: key for key in described()["lengths"]["joint"].keys}
    assert joint["input.p50"].within == "log normal marginal"
    assert joint["output.probabilities"].within == "quantile marginal"
    assert joint["input"].within == ""


@cache
def validator(kind):
    schema = make_schema(kind)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("kind", SHIPPED)
def test_the_schema_accepts_the_shipped_files(kind):
    files = sorted((shipped_folder() / SHIPPED[kind]).glob("*.toml"))
    assert files
    own, of_host = validator(kind), validator("host calibration")
    for path in files:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        found = (of_host if "kernels" in table else own).iter_errors(table)
        assert [f"{path.name}: {error.json_path}" for error in found] == []


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_schema_accepts_what_new_writes(kind):
    table = tomllib.loads(read_template(kind).replace("NAME", "mine"))
    assert [error.json_path for error in validator(kind).iter_errors(table)] == []


SCENARIO = {
    "workload": {"requests": "chat"},
    "deployments": [{"name": "a", "model": "m", "cluster": "c"}],
}


@pytest.mark.parametrize(
    ("key", "table", "is_right"),
    [
        ("routing", {"kind": "zipf", "exponent": 0.6}, True),
        ("routing", {"kind": "zipf"}, False),
        ("routing", {"kind": "zipf", "exponent": -1.0}, False),
        ("routing", {"kind": "zipf", "exponent": 0.6, "sigma": 1.0}, False),
        ("routing", {"kind": "zpf", "exponent": 0.6}, False),
        ("routing", {"exponent": 0.6}, False),
        ("routing", {"kind": "my_package.my_policy", "anything": 1}, True),
        ("scheduling", {"token_budget": 4096}, True),
        ("scheduling", {"kind": "chunked", "watermark": 0.1}, True),
        ("scheduling", {"kind": "chunked", "poll_steps": 2}, False),
        ("failures", [{"kind": "kill", "at_s": 1.0, "gpu": 0}], True),
        ("failures", [{"kind": "kill", "gpu": 0}], False),
        ("routng", {"kind": "zipf", "exponent": 0.6}, False),
    ],
)
def test_the_schema_checks_the_keys_of_every_kind_of_policy(key, table, is_right):
    deployment = SCENARIO["deployments"][0] | {key: table}
    assert validator("scenario").is_valid(SCENARIO | {"deployments": [deployment]}) == is_right


def test_every_kind_of_file_has_a_schema_that_refuses_an_unknown_key():
    for kind in FILES:
        problems = validator(kind).iter_errors({"no_such_key": 1})
        assert any(error.validator == "additionalProperties" for error in problems), kind
