"""Fields that hold one kind of a family, built at once (:class:`OneOf`) or later from their table
(:class:`PolicyOf`, :class:`KindByName`).

The kinds of the project are told apart by their key ``kind``, as alternatives of the JSON Schema;
one with a dot in it is a user's own class (:mod:`simulator.base.plugins`). The keyword ``family``
of the schema names the family, for whoever documents keys.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from dataclasses import dataclass

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidatorFunctionWrapHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, describe, validate
from simulator.base.plugins import available, find_class

OWN_KIND: JsonSchemaValue = {
    "title": "own kind",
    "description": "A policy of your own: the dotted name of a Python module, and its keys.",
    "type": "object",
    "properties": {
        "kind": {
            "description": "Dotted name of the module that defines the policy.",
            "type": "string",
            "pattern": r"^\w+(\.\w+)+$",
        }
    },
    "required": ["kind"],
}
"""JSON Schema of a table that names a user's own class."""


@dataclass(frozen=True)
class OneOf:
    """Annotation of a field whose table, with its ``kind``, describes a member of ``family``."""

    family: str

    def __get_pydantic_core_schema__(
        self, source: type[Frozen], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        shipped = core_schema.tagged_union_schema(
            {
                kind: handler.generate_schema(find_class(self.family, kind))
                for kind in available(self.family)
            },
            discriminator="kind",
        )

        def pick(value: object, choose: ValidatorFunctionWrapHandler) -> object:
            return value if isinstance(value, source) else self._build_own(value) or choose(value)

        # Written by its own class and not as one of the alternatives, which lack a user's.
        by_class = core_schema.wrap_serializer_function_ser_schema(
            lambda value, serialize: serialize(value), schema=core_schema.any_schema()
        )
        return core_schema.no_info_wrap_validator_function(pick, shipped, serialization=by_class)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        return {"family": self.family, "oneOf": [*schema["oneOf"], OWN_KIND]}

    def _build_own(self, table: object) -> Frozen | None:
        """Build a user's own kind; ``None`` where the table names none."""
        kind = table.get("kind") if isinstance(table, dict) else None
        if not isinstance(kind, str) or "." not in kind:
            return None
        try:
            return validate(find_class(self.family, kind), table, f"kind '{kind}'")
        except UserError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class PolicyOf:
    """Annotation of a ``{ kind = "...", ... }`` table that :func:`simulator.base.plugins.build`
    makes a policy of ``family`` from.
    """

    family: str
    is_partial: bool = False
    """Whether ``kind`` and all other keys may be absent, to be completed by an engine's file."""
    may_be_name: bool = False
    """Whether the kind's name alone may stand for its table."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        tables = [self._describe(kind, handler) for kind in available(self.family)]
        alternatives = "anyOf" if self.is_partial else "oneOf"
        family = {"family": self.family, alternatives: [*tables, OWN_KIND]}
        if not self.may_be_name:
            return family
        return {"anyOf": [family, {"type": "string", "enum": list(available(self.family))}]}

    def _describe(self, kind: str, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(describe(find_class(self.family, kind), handler))
        required = [] if self.is_partial else ["kind", *schema.get("required", ())]
        keys = {"kind": _constant(kind), **schema.get("properties", {})}
        return {**schema, "title": kind, "properties": keys, "required": required}


@dataclass(frozen=True)
class KindByName:
    """Annotation of a table with no key but ``kind``, of a ``family`` whose files import packages
    that need not be installed: they are listed, not imported.
    """

    family: str

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        package = importlib.util.find_spec(f"simulator.{self.family}")
        folders = package.submodule_search_locations if package else None
        names = [module.name for module in pkgutil.iter_modules(folders or [])]
        tables: list[JsonSchemaValue] = [
            {
                "title": name,
                "type": "object",
                "properties": {"kind": _constant(name)},
                "required": ["kind"],
                "additionalProperties": False,
            }
            for name in names
            if not name.startswith("_")
        ]
        return {"family": self.family, "oneOf": [*tables, OWN_KIND]}


def _constant(kind: str) -> JsonSchemaValue:
    return {"description": "Name of the policy.", "type": "string", "const": kind}


@dataclass(frozen=True)
class TableOf:
    """Annotation of a table that is validated as ``model`` later, where its file is known."""

    model: type[Frozen]

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return describe(self.model, handler)
