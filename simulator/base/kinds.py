"""A field that holds one kind of a family: ``Annotated[Mixer, OneOf("mixers")]``.

The kinds of the project are told apart by their key ``kind``, as alternatives of the JSON Schema;
one with a dot in it is a user's own class (:mod:`simulator.base.plugins`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, validate
from simulator.base.plugins import available, find_class


@dataclass(frozen=True)
class OneOf:
    """Marks a field whose table, with its ``kind``, describes a member of ``family``."""

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

        def pick(value: Any, choose: ValidatorFunctionWrapHandler) -> Any:
            return value if isinstance(value, source) else self._own(value) or choose(value)

        # Written by its own class and not as one of the alternatives, which lack a user's.
        by_class = core_schema.wrap_serializer_function_ser_schema(
            lambda value, serialize: serialize(value), schema=core_schema.any_schema()
        )
        return core_schema.no_info_wrap_validator_function(pick, shipped, serialization=by_class)

    def _own(self, table: Any) -> Frozen | None:
        """A user's own kind; ``None`` where the table names none."""
        kind = table.get("kind") if isinstance(table, dict) else None
        if not isinstance(kind, str) or "." not in kind:
            return None
        try:
            return validate(find_class(self.family, kind), table, f"kind '{kind}'")
        except UserError as error:
            raise ValueError(str(error)) from None
