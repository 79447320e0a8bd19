"""Every number that a file may hold has a lowest and a highest value, and a unit where its key says
one. Discovered, never listed.
"""

import numpy as np
import pytest
from pydantic import TypeAdapter

from simulator.base import quantities
from simulator.base.plugins import available, policy_class
from simulator.commands.catalogue import POLICIES
from simulator.commands.schema import FILES, make_schema

LOW, HIGH = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
UNITS = {
    "_bytes_per_s": "bytes per second",
    "_flops_per_s": "FLOPs per second",
    "_tokens_per_s": "tokens per second",
    "_per_s": "requests per second",
    "_bytes": "bytes",
    "_tokens": "tokens",
    "_gpus": "GPUs",
    "_nodes": "nodes",
    "_ranks": "ranks",
    "_heads": "heads",
    "_groups": "groups",
    "_layers": "layers",
    "_budget_per_hour": "units of the currency per hour",
    "_s": "seconds",
    "_w": "watts",
}
"""By the end of a key, the longer ends first."""
FITTED = {"working_bytes", "num_bytes", "times_s"}
"""Axes of measured tables, which are wider than a quantity of their unit."""


def numbers(schema, definitions, key=""):
    """``(key, node)`` of every number in a JSON Schema, of its definitions too."""
    if isinstance(schema, list):
        for part in schema:
            yield from numbers(part, definitions, key)
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"const", "enum"} & set(schema):
            yield key, schema
        for name, part in schema.items():
            if name in ("properties", "$defs"):
                for child, node in part.items():
                    yield from numbers(node, definitions, child if name == "properties" else "")
            elif name in (
                "items",
                "prefixItems",
                "anyOf",
                "oneOf",
                "allOf",
                "additionalProperties",
            ):
                yield from numbers(part, definitions, key)


def schemas():
    """Every kind of file, and every policy that a file may name."""
    found = {f"a {kind}": make_schema(kind) for kind in FILES}
    for family in POLICIES.values():
        for kind in available(family) if family != "report.figures" else ():
            found[f"{family} {kind}"] = policy_class(family, kind, "test").model_json_schema()
    return found


def test_every_number_in_every_file_has_a_lowest_and_a_highest_value():
    found = [
        (where, key, node)
        for where, schema in schemas().items()
        for key, node in numbers(schema, schema.get("$defs", {}))
    ]
    assert len(found) > 300
    unbounded = [
        f"{where}: {key}"
        for where, key, node in found
        if not (LOW & set(node) and HIGH & set(node))
    ]
    assert not unbounded, f"give these a quantity of simulator.base.quantities: {unbounded}"


def test_a_key_that_ends_in_a_unit_is_a_quantity_of_it():
    wrong = []
    for where, schema in schemas().items():
        for key, node in numbers(schema, schema.get("$defs", {})):
            end = next((end for end in UNITS if f"_{key}".endswith(end)), None)
            if end is None or key in FITTED or "calibration" in where:
                continue
            if node.get("unit") != UNITS[end]:
                wrong.append(f"{where}: {key} is in {node.get('unit', 'no unit')}")
    assert not wrong


NAMED = {
    name: member
    for name, member in vars(quantities).items()
    if hasattr(member, "__metadata__") and quantities.IS_LABEL not in member.__metadata__
}


@pytest.mark.parametrize("name", NAMED)
def test_a_quantity_holds_its_ends_and_nothing_beyond(name):
    schema = TypeAdapter(NAMED[name]).json_schema()
    adapter, is_whole = TypeAdapter(NAMED[name]), schema["type"] == "integer"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema["maximum"]
    assert low < high
    adapter.validate_python(int(high) if is_whole else float(high))
    for wrong in (low - 1, high * 2 if high else 1):
        with pytest.raises(ValueError, match="Input should be"):
            adapter.validate_python(int(wrong) if is_whole else float(wrong))
    assert high <= np.iinfo(np.int64).max if is_whole else np.float64(high) < np.inf
