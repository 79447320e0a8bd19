"""Base class of every configuration record and policy: frozen, strict, no unknown keys; and the
errors for wrong ones.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from simulator.base.errors import UserError, did_you_mean
from simulator.base.quantities import mistaken_unit
from simulator.base.text import shorten


class Frozen(BaseModel):
    """Validated record without behaviour: its fields are its configuration keys, and making one
    does nothing else.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe fields by the docstrings below them.

        pydantic's own ``use_attribute_docstrings`` reads the source of every class when it is made,
        which is half of what a command needs to import its records.
        """
        schema = handler(core)
        keys = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _read_docstrings(cls).items():
            key = cls.model_fields[name].alias or name
            if key in keys:
                keys[key] = {"description": text, **keys[key]}
        return schema


def describe(cls: type[Frozen], handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """JSON Schema of a class inside that of an annotation, whose ``handler`` asks no class."""
    return cls.__get_pydantic_json_schema__(cls.__pydantic_core_schema__, handler)


def _read_docstrings(cls: type[Frozen]) -> dict[str, str]:
    """Docstrings of the fields of a class and of those it inherits from; none where there is no
    source.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Frozen):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):  # no file, or a text that reaches its margin
            continue
        for field, text in pairwise(tree.body if isinstance(tree, ast.ClassDef) else ()):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    found[name] = inspect.cleandoc(words)
    return {name: text for name, text in found.items() if name in cls.model_fields}


Policy = dict[str, Any]
"""A ``{ kind = "...", ... }`` table, built into a policy by
:func:`simulator.base.plugins.build`."""

Entry = TypeVar("Entry")
ListOf = Annotated[tuple[Entry, ...], Field(strict=False)]
"""List of a file, which may be empty."""
SomeOf = Annotated[tuple[Entry, ...], Field(strict=False, min_length=1)]
"""List of at least one entry."""
PairOf = Annotated[tuple[Entry, Entry], Field(strict=False)]
"""List of two entries."""

AnyFrozen = TypeVar("AnyFrozen", bound=BaseModel)

_PHRASES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text in quotes",
    "bool_type": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": "a list",
    "list_type": "a list",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
    "string_too_short": "a text that is not empty",
    "too_short": "a list of at least {min_length} entries",
    "too_long": "a list of at most {max_length} entries",
}
"""Phrases after ``must be``, by pydantic's name of the problem."""


def validate(cls: type[AnyFrozen], table: object, where: str) -> AnyFrozen:
    """Build ``cls`` from a table read from a file.

    Args:
        where: the file (and section) that errors name.

    Raises:
        UserError: one line with the place, the key, the value and what would be right.
    """
    try:
        return cls.model_validate(table)
    except ValidationError as error:
        raise UserError(_describe(cls, error, table, where)) from None


def _describe(cls: type[BaseModel], error: ValidationError, table: object, where: str) -> str:
    problems = _causes(error.errors(include_url=False))
    first = problems[0]
    kind, value = first["type"], first.get("input")
    where, keys = _locate(table, first["loc"], where)
    if kind == "extra_forbidden":
        section = f" [{'.'.join(keys[:-1])}]" if keys[:-1] else ""
        nodes = _nodes_at(cls, first["loc"][:-1])
        known = {key for node in nodes for key in node.get("properties", {})}
        return f"{where}{section}: unknown key '{keys[-1]}'; {did_you_mean(keys[-1], known)}"
    key = ".".join(keys)
    if kind == "missing":
        return f"{where}: missing {_missing(problems, table)}"
    if kind == "value_error":
        reason = str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
        return f"{where} [{key}]: {reason}" if key else f"{where}: {reason}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = str(first["ctx"]["discriminator"]).strip("'")
        if kind == "union_tag_not_found":
            return f"{where}: missing key '{key}.{tag}'"
        return (
            f"{where}: {key}.{tag} must be one of {first['ctx']['expected_tags']}, "
            f"got {_show(first['ctx']['tag'])}"
        )
    # Of a key that may be of several types there is a problem for each.
    same = [
        p
        for p in problems
        if _locate(table, p["loc"], "")[1] == keys and p["type"] in _PHRASES and p["input"] is value
    ]
    phrases = dict.fromkeys(_phrase(cls, p) for p in same)
    reason = "must be " + " or ".join(
        phrases or [first["msg"].removeprefix("Input should be ").strip()]
    )
    if kind in ("tuple_type", "list_type") and isinstance(value, dict):
        tables = [part for part in first["loc"] if isinstance(part, str)]
        reason += f" of tables; write [[{'.'.join(tables)}]] with two brackets"
    doubt = mistaken_unit(_unit(cls, first["loc"]), is_high=kind.startswith("less_than"))
    return f"{where}: {key} {reason}, got {_show(value)}" + (f"; {doubt}" if doubt else "")


def _causes(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Sort the problems, the likeliest cause first: an unknown key causes a missing one. A list's
    own problem is dropped where its entries have some.
    """
    paths = [problem["loc"] for problem in problems]
    own = [
        problem
        for problem in problems
        if not any(path[: len(loc := problem["loc"])] == loc != path for path in paths)
    ]
    last = ("extra_forbidden", "missing")
    return sorted(own, key=lambda p: last.index(p["type"]) if p["type"] in last else -1)


def _missing(problems: list[ErrorDetails], table: object) -> str:
    """Name all keys missing beside the first one, so that a file is completed in one go."""
    beside = problems[0]["loc"][:-1]
    keys = [
        ".".join(_locate(table, problem["loc"], "")[1])
        for problem in problems
        if problem["type"] == "missing" and problem["loc"][:-1] == beside
    ]
    return ("keys " if keys[1:] else "key ") + ", ".join(f"'{key}'" for key in keys)


def _phrase(cls: type[BaseModel], problem: ErrorDetails) -> str:
    """Say what a key must be: ``at most 1,024 GPUs``."""
    limits = {
        name: f"{limit:,.8g}" if isinstance(limit, int | float) else limit
        for name, limit in problem.get("ctx", {}).items()
    }
    phrase = _PHRASES[problem["type"]].format(**limits)
    is_range = problem["type"].startswith(("greater_than", "less_than"))
    return f"{phrase} {_unit(cls, problem['loc'])}".rstrip() if is_range else phrase


def _unit(cls: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """Unit of the number at ``path``; empty where it has none."""
    units = [node["unit"] for node in _nodes_at(cls, path) if "unit" in node]
    return str(units[0]) if units else ""


def _locate(table: object, path: tuple[int | str, ...], where: str) -> tuple[str, list[str]]:
    """Describe a place in words, down to the last entry of a list of tables (by its name where it
    has one), and list the keys below it.

    What pydantic puts into a path beside keys (the type that it tried, a validator) is left out: it
    is no place in the file.
    """
    keys: list[str] = []
    node = table
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            entry = node[part]
            if isinstance(entry, dict):
                name = entry.get("name")
                label = (
                    f"'{shorten(name)}'"
                    if isinstance(name, str) and name
                    else f"entry {part + 1} of {len(node)}"
                )
                where, keys = f"{where} [{'.'.join(keys)} {label}]", []
            else:
                keys.append(str(part))
            node = entry
        elif isinstance(node, dict) and (part in node or (is_last and isinstance(part, str))):
            keys.append(shorten(str(part)))
            node = node.get(part)
    return where, keys


def _nodes_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[JsonSchemaValue]:
    """JSON Schema nodes at ``path``; of all alternatives where it is a union."""
    schema = _describe_keys(cls)
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in path:
        nodes = [child for node in nodes for child in _children(node, part, definitions)]
    return nodes


@cache
def _describe_keys(cls: type[BaseModel]) -> JsonSchemaValue:
    """JSON Schema of ``cls``, made once: a search may report thousands of problems."""
    return cls.model_json_schema()


def _children(
    node: JsonSchemaValue, part: int | str, definitions: JsonSchemaValue
) -> list[JsonSchemaValue]:
    if isinstance(part, int):
        child = node.get("items") or node.get("prefixItems")
    else:
        child = node.get("properties", {}).get(part) or node.get("additionalProperties")
        if not isinstance(child, dict):  # the tag of a union, which is not a level in the schema
            return [node]
    return _resolve(child, definitions)


def _resolve(node: object, definitions: JsonSchemaValue) -> list[JsonSchemaValue]:
    if isinstance(node, list):
        return [found for part in node for found in _resolve(part, definitions)]
    if not isinstance(node, dict):
        return []
    if "$ref" in node:
        return _resolve(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    options = node.get("anyOf") or node.get("oneOf")
    return _resolve(options, definitions) if options else [node]


def _show(value: object) -> str:
    """Write a value as a file would."""
    if isinstance(value, float):
        return str(value)
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
