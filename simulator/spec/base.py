"""The base of every description and policy: frozen, strict, no unknown keys; and how a wrong one is reported."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.errors import UserError, did_you_mean


class Frozen(BaseModel):
    """An inert, validated record: fields are its configuration keys, nothing happens when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Policy = dict[str, Any]
"""A ``{ kind = "...", ... }`` table, built into a policy by :func:`simulator.plugins.build`."""

AnyFrozen = TypeVar("AnyFrozen", bound=BaseModel)

_PHRASES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text in quotes",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
}


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
        raise UserError(_describe(cls, error, where)) from None


def _describe(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    # An unknown key is the likeliest cause of a missing one, so it is named first.
    first = min(
        problems,
        key=lambda p: ("extra_forbidden", "missing").index(p["type"]) if p["type"] in ("extra_forbidden", "missing") else -1,
    )
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    kind, value = first["type"], first.get("input")
    if kind == "extra_forbidden":
        known = _keys_at(cls, first["loc"][:-1])
        section = f" [{'.'.join(location[:-1])}]" if location[:-1] else ""
        return f"{where}{section}: unknown key '{location[-1]}'; {did_you_mean(location[-1], known)}"
    key = ".".join(location)
    if kind == "missing":
        return f"{where}: missing key '{key}'"
    if kind == "value_error":
        reason = str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
        return f"{where} [{key}]: {reason}" if key else f"{where}: {reason}"
    reason = _PHRASES.get(kind, first["msg"].removeprefix("Input should be ").strip())
    if not reason.startswith(("must", "Value")):
        reason = f"must be {reason}"
    return f"{where}: {key} {reason}, got {_show(value)}"


def _keys_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Known keys of the (possibly nested) model that ``path`` leads to; of all candidates where it is a union."""
    schema = cls.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in path:
        nodes = [child for node in nodes for child in _children(node, part, definitions)]
    return sorted({key for node in nodes for key in node.get("properties", {})})


def _children(node: dict[str, Any], part: int | str, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(part, int):
        child = node.get("items") or node.get("prefixItems")
    else:
        child = node.get("properties", {}).get(part) or node.get("additionalProperties")
        if not isinstance(child, dict):  # the tag of a union, which is not a level in the schema
            return [node]
    return _resolve(child, definitions)


def _resolve(node: Any, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for part in node for found in _resolve(part, definitions)]
    if not isinstance(node, dict):
        return []
    if "$ref" in node:
        return _resolve(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    options = node.get("anyOf") or node.get("oneOf")
    return _resolve(options, definitions) if options else [node]


def _show(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
