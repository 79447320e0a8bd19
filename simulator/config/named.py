"""Names of files, with some of their keys changed in place.

``{ base = "qwen3-30b-a3b", top_k = 4 }`` is the model of that name with another top-k. It is held
as one text, ``qwen3-30b-a3b { top_k = 4 }``, which can be written too, and which results show.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from simulator.base.errors import UserError, did_you_mean
from simulator.base.frozen import AnyFrozen, validate
from simulator.base.text import inline_toml, toml_key

NAMING = ("model", "cluster", "engine", "accelerator")
"""Keys that hold such a name."""


@dataclass(frozen=True)
class Changeable:
    """Annotation of a text that names a file, for which a table with ``base`` may stand."""

    noun: str
    """Word for such a file."""
    usual: str = ""
    """Name that a table without ``base`` changes."""

    def __get_pydantic_core_schema__(
        self, source: type[str], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._write, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        base = {"description": f"Name of the {self.noun} whose keys hold.", "type": "string"}
        table = {"title": f"{self.noun} with changes", "type": "object"}
        needed = {"required": [] if self.usual else ["base"], "additionalProperties": True}
        return {"anyOf": [handler(core), table | {"properties": {"base": base}} | needed]}

    def _write(self, given: object) -> object:
        """Write a table as a name with its changes; anything else stays."""
        if not isinstance(given, dict):
            return given
        changes = dict(given)
        base = changes.pop("base", self.usual)
        if not isinstance(base, str) or not base:
            raise ValueError(
                f"changes keys of no {self.noun}; name one by base, such as "
                f'{{ base = "...", {", ".join(_list_texts(changes))} }}'
            )
        try:
            name, earlier = split_name(base)
            return join_name(name, merge(earlier, changes, base))
        except UserError as error:
            raise ValueError(str(error)) from None


def split_name(name: str) -> tuple[str, dict[str, object]]:
    """Split a name from the changes behind it.

    Raises:
        UserError: if what is behind it is no table.

    >>> split_name("qwen3-30b-a3b { top_k = 4 }"), split_name("olmoe")
    (('qwen3-30b-a3b', {'top_k': 4}), ('olmoe', {}))
    """
    base, brace, rest = name.partition(" {")
    if not brace:
        return name, {}
    try:
        return base, tomllib.loads(f"changes = {{{rest}")["changes"]
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name}: what follows {base} is no TOML table: {error}") from None


def join_name(base: str, changes: Mapping[str, object]) -> str:
    """Write a name with changes behind it; the reverse of :func:`split_name`.

    >>> join_name("mixtral-8x7b", {"ffns": {"moe": {"top_k": 1, "num_experts": 4}}})
    'mixtral-8x7b { ffns.moe.top_k = 1, ffns.moe.num_experts = 4 }'
    """
    return f"{base} {{ {', '.join(_list_texts(changes))} }}" if changes else base


def _list_texts(changes: Mapping[str, object], above: str = "") -> Iterator[str]:
    for key, value in changes.items():
        path = f"{above}{toml_key(key)}"
        if isinstance(value, dict) and value:
            yield from _list_texts(value, f"{path}.")
        else:
            yield f"{path} = {inline_toml(value)}"


def change(spec: AnyFrozen, changes: Mapping[str, object], where: str, **instead: Any) -> AnyFrozen:
    """The record of a file with some keys changed, which its name and title tell.

    A key that the file does not have itself is set where it stands in its tables: ``top_k`` in all
    feed-forward blocks with experts.

    Args:
        changes: values by key, from :func:`split_name`; tables change the keys that they name, and
            entries of lists are named by their number, or ``*`` for all.
        where: the file.
        instead: values of keys that a change makes wrong, unless it names them.

    Raises:
        UserError: if there is no such key, or it stands in tables of several kinds.
    """
    if not changes:
        return spec
    text = ", ".join(_list_texts(changes))
    place = f"{where} with {text}"
    table: Any = {**spec.model_dump(), **instead}
    tables = dict(_list_tables(table))
    own = {"title": f"{table['title'] or table.get('name')} with {text}"}
    if "name" in table:
        own["name"] = join_name(table["name"], changes)
    table |= own
    for key, value in changes.items():
        holders = {path: one.get("kind") for path, one in tables.items() if key in one}
        paths = [""] if key in type(spec).model_fields else list(holders)
        if not paths:
            known = {*type(spec).model_fields, *(key for one in tables.values() for key in one)}
            raise UserError(f"{place}: unknown key '{key}'; {did_you_mean(key, known)}")
        if paths[1:] and (len({*holders.values()}) > 1 or None in holders.values()):
            raise UserError(
                f"{place}: {key} stands in {' and '.join(paths)}; name one: {paths[0]}.{key}"
            )
        for path in paths:
            nested = {key: value}
            for name in reversed(path.split(".") if path else []):
                nested = {name: nested}
            table = merge(table, nested, place)
    return validate(type(spec), table, place)


def _list_tables(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Tables inside a table by dotted path, without the sources of numbers."""
    for name, inner in table.items():
        if isinstance(inner, dict) and name != "sources":
            yield f"{above}{name}", inner
            yield from _list_tables(inner, f"{above}{name}.")


def merge(below: Any, above: Any, where: str) -> Any:
    """A value over another: tables key by key unless their kinds differ, lists by the numbers of
    entries; anything else of ``above`` stands for what was below.

    Raises:
        UserError: if a list has no entry of a number.

    >>> merge({"a": [{"b": 1, "c": 2}, 3], "d": 4}, {"a": {"0": {"b": 5}}}, "here")
    {'a': [{'b': 5, 'c': 2}, 3], 'd': 4}
    """
    if not isinstance(above, dict):
        return above
    if isinstance(below, str):
        return {"base": below, **above}
    if isinstance(below, list | tuple):
        entries = list(below)
        for key, value in above.items():
            for number in choose_entries(key, len(entries), where):
                entries[number] = merge(entries[number], value, where)
        return entries
    if not isinstance(below, dict) or above.get("kind", below.get("kind")) != below.get("kind"):
        return above
    return {**below, **{key: merge(below.get(key), one, where) for key, one in above.items()}}


def choose_entries(key: str, count: int, where: str) -> range:
    """Numbers of the entries of a list that a key names: one, or ``*`` for all.

    Raises:
        UserError: if there is no such entry.
    """
    if key == "*":
        return range(count)
    if key.isdecimal() and int(key) < count:
        return range(int(key), int(key) + 1)
    numbers = "0" if count < 2 else f"a number from 0 to {count - 1}"
    raise UserError(f"{where}: '{key}' must be {numbers}, or * for every entry")


ModelName = Annotated[str, Changeable("model")]
ClusterName = Annotated[str, Changeable("cluster")]
