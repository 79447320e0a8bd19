"""Reference of every key that a file may hold, as data: family, kind, key, type, unit, bounds,
default, description.

All of it is read off the JSON Schemas (:mod:`simulator.commands.schema`), so that a policy that is
added as one file is in the reference, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from simulator.base.text import inline_toml
from simulator.commands.catalogue import POLICIES
from simulator.commands.schema import FILES, WRITTEN, make_schema

_Node = dict[str, Any]
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "table",
}


class Key(NamedTuple):
    """Key of a table."""

    path: str
    """Dotted path in the table: ``parallel.tp``, ``deployments[].name`` for each entry of a list,
    ``mixers.<name>.kind`` for names of the user's own."""
    type: str
    """Type in words: ``whole number``, ``list of text``, ``table of a routing policy``."""
    unit: str
    """Unit in the plural, such as ``seconds``; empty for pure numbers and everything else."""
    bounds: str
    """Lowest and highest value, both inside unless said: ``1 to 1,024``; empty where there are
    none."""
    default: str | None
    """Value of an absent key as TOML; ``absent`` where the description says what that means, empty
    for a table whose keys have defaults of their own; ``None`` where the key must be given."""
    description: str


class Kind(NamedTuple):
    """Kind of file, or policy of a family."""

    name: str
    """Name that ``moesim schema`` takes, or the value of ``kind``."""
    description: str
    """Docstring of its class, paragraphs apart."""
    keys: tuple[Key, ...]


def describe_keys() -> dict[str, dict[str, Kind]]:
    """List all kinds by family: ``files`` first, then the families of policies that files name.

    >>> zipf = describe_keys()["routing"]["zipf"]
    >>> [(key.path, key.type, key.bounds) for key in zipf.keys]
    [('kind', '"zipf"', ''), ('exponent', 'number', '0 to 20')]
    """
    found: dict[str, dict[str, Kind]] = {"files": {}}
    for name in FILES | WRITTEN:
        schema = make_schema(name)
        _Reader(schema.get("$defs", {}), found).read_file(name, schema)
    return found


class _Reader:
    """Reads the keys of one file's schema, and adds the families that it names to ``found``."""

    def __init__(self, definitions: _Node, found: dict[str, dict[str, Kind]]) -> None:
        self._definitions = definitions
        self._found = found

    def read_file(self, name: str, schema: _Node) -> None:
        required = schema.get("required", schema.get("else", {}).get("required", ()))
        described = {**schema, "required": required}
        self._found["files"][name] = self._make_kind(name, described)

    def _make_kind(self, name: str, table: _Node) -> Kind:
        return Kind(name, table.get("description", ""), tuple(self._list_keys(table, "")))

    def _list_keys(self, table: _Node, prefix: str) -> Iterator[Key]:
        for name, node in table["properties"].items():
            path, is_required = f"{prefix}{name}", name in table.get("required", ())
            yield self._make_key(path, node, is_required)
            for behind, nested in self._tables(node):
                yield from self._list_keys(nested, f"{path}{behind}.")

    def _make_key(self, path: str, node: _Node, is_required: bool) -> Key:
        parts = list(self._alternatives(node))
        # Pydantic leaves out what would repeat the description of the table itself.
        described = node.get("description") or parts[0].get("description", "")
        units = [part["unit"] for part in self._numbers(node) if "unit" in part]
        bounds = [text for text in map(_bounds_of, self._numbers(node)) if text]
        return Key(
            path,
            " or ".join(dict.fromkeys(map(self._type_of, parts))),
            units[0] if units else "",
            bounds[0] if bounds else "",
            None if is_required else _default_of(node, parts),
            " ".join(described.split()),
        )

    def _alternatives(self, node: _Node) -> Iterator[_Node]:
        """Nodes of a union, references followed; families stay whole, and are read once."""
        if "family" in node:
            self._add_family(node)
            yield node
        elif "$ref" in node:
            yield from self._alternatives(self._definitions[node["$ref"].rsplit("/", 1)[-1]])
        elif options := node.get("anyOf") or node.get("oneOf"):
            for option in options:
                yield from self._alternatives(option)
        elif node.get("type") != "null":
            yield node

    def _add_family(self, node: _Node) -> None:
        kinds = self._found.setdefault(_name_of(node["family"]), {})
        for option in node.get("anyOf") or node["oneOf"]:
            for table in self._alternatives(option):
                kind = table["properties"]["kind"].get("const")
                if kind is not None and kind not in kinds:
                    kinds[kind] = self._make_kind(kind, table)

    def _numbers(self, node: _Node) -> Iterator[_Node]:
        """Numbers that a node holds, those in lists and under names included."""
        for part in self._alternatives(node):
            if part.get("type") in ("integer", "number"):
                yield part
            for inner in _inner(part):
                yield from self._numbers(inner)

    def _tables(self, node: _Node, behind: str = "") -> Iterator[tuple[str, _Node]]:
        """Tables that a node holds, with what is put behind its path; no policies, which have pages
        of their own.
        """
        for part in self._alternatives(node):
            if "family" in part:
                continue
            if "properties" in part:
                yield behind, part
            mark = ".<name>" if part.get("type") == "object" else "[]"
            for inner in _inner(part):
                yield from self._tables(inner, behind + mark)

    def _type_of(self, node: _Node) -> str:
        if "family" in node:
            return f"table of {_name_of(node['family'])}"
        if "const" in node:
            return inline_toml(node["const"])
        if "enum" in node:
            return " or ".join(map(inline_toml, node["enum"]))
        if node.get("type") in ("array", "object") and (inner := _inner(node)):
            types = dict.fromkeys(
                self._type_of(part) for one in inner for part in self._alternatives(one)
            )
            held = " or ".join(types)
            return f"list of {held}" if node["type"] == "array" else f"table by name of {held}"
        return _TYPES[node["type"]]


def _inner(node: _Node) -> list[_Node]:
    """Nodes of a list's entries, or of the values under names of the user's own."""
    named = node.get("additionalProperties")
    found = [node.get("items"), named, *node.get("prefixItems", ())]
    return [one for one in found if isinstance(one, dict)]


def _name_of(family: str) -> str:
    """Name of a family as ``moesim list`` has it."""
    names = {package: name for name, package in POLICIES.items()}
    return names.get(family, family.rpartition(".")[2])


def _bounds_of(node: _Node) -> str:
    """Range of a number in words.

    >>> _bounds_of({"exclusiveMinimum": 0, "maximum": 1e15})
    'above 0 to 1e+15'
    """
    low, high = node.get("minimum"), node.get("maximum")
    above = node.get("exclusiveMinimum")
    if high is None or (low is None and above is None):
        return ""
    return f"{f'above {above:,g}' if low is None else _digits(low)} to {_digits(high)}"


def _digits(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and abs(number) < 1e9 else f"{number:,g}"


def _default_of(node: _Node, parts: list[_Node]) -> str:
    default = node.get("default")
    if default is None:
        return "absent"
    is_own = any("properties" in part for part in parts) and "family" not in parts[0]
    return "" if is_own and isinstance(default, dict) else inline_toml(default)
