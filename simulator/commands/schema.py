"""``moesim schema``: JSON Schemas of files, and from them the reference of every key that a file
may hold, so that a policy that is added as one file is in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel

from simulator.base.errors import check_known
from simulator.base.text import inline_toml
from simulator.commands.catalogue import POLICIES, describe_kind, list_files, list_kinds
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import CalibrationFile
from simulator.config.capacity import Question
from simulator.config.claim import ClaimFile
from simulator.config.cluster import ClusterSpec, available_clusters
from simulator.config.engine import EngineSpec
from simulator.config.host import HostCalibration
from simulator.config.law_file import LawFile
from simulator.config.model import ModelSpec
from simulator.config.training_question import TrainingQuestion
from simulator.config.workload import NamedWorkloadSpec
from simulator.results.answer import Answer
from simulator.scenario.scenario import Scenario, TrainingScenario

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


_Node: TypeAlias = dict[str, Any]
"""Node of a JSON Schema."""


def make_schema(kind: str) -> _Node:
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


def describe_whole(kind: str) -> _Node:
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


def _require(schema: _Node, required: list[str]) -> _Node:
    """Keywords that ask for the required keys, unless the file is based on another one that may
    have them.
    """
    if "based_on" not in schema["properties"]:
        return {"required": required}
    whole: _Node = {"required": required}
    if "MemoryRules" in schema["$defs"]:  # an engine's tables are completed key by key
        memory = schema["$defs"]["MemoryRules"]
        whole["properties"] = {"memory": {"required": memory.pop("required")}}
    return {"if": {"required": ["based_on"]}, "else": whole}


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
    within: str = ""
    """Tables that have the key, where its table is one of several alternatives and others lack it:
    ``kind = "block"``, or the table's title in words."""
    is_label: bool = False
    """Whether it is told only: a name, a source, a remark, or a fit's error, with which no figure
    changes."""


class Kind(NamedTuple):
    """Kind of file, or policy of a family."""

    name: str
    """Name that ``moesim schema`` takes, or the value of ``kind``."""
    description: str
    """First paragraph of its file, for a policy, and the docstring of its class, paragraphs
    apart."""
    keys: tuple[Key, ...]


def describe_entry(family: str, name: str) -> Kind | Path:
    """Find an entry of a family of :func:`list_kinds`: a policy with its keys, or the file of data.

    Raises:
        UserError: if there is no such family or entry.
    """
    if family in POLICIES:
        check_known(name, list_kinds(family)[family], f"list {family}: unknown name")
        described = describe_kind(POLICIES[family], name)
        return describe_keys().get(family, {}).get(name, Kind(name, described, ()))
    files = list_files(family)
    stem = name.rpartition("-")[0]
    if name not in files and stem in files and name in available_clusters():
        name = stem
    check_known(name, files, f"list {family}: unknown name")
    return files[name]


def describe_keys(*files: str) -> dict[str, dict[str, Kind]]:
    """List all kinds by family: ``files`` first, then the families of policies that files name.

    Args:
        files: kinds of files; all, if empty.

    >>> zipf = describe_keys()["routing"]["zipf"]
    >>> [(key.path, key.type, key.bounds) for key in zipf.keys]
    [('kind', '"zipf"', ''), ('exponent', 'number', '0 to 20')]
    """
    found: dict[str, dict[str, Kind]] = {"files": {}}
    for name in files or (FILES | WRITTEN):
        schema = describe_whole(name)
        reader = _Reader(schema.get("$defs", {}), found)
        found["files"][name] = reader.read_kind(name, schema, schema.get("description", ""))
    return found


class _Reader:
    """Reads the keys of one file's schema, and adds the families that it names to ``found``."""

    def __init__(self, definitions: _Node, found: dict[str, dict[str, Kind]]) -> None:
        self._definitions = definitions
        self._found = found

    def read_kind(self, name: str, table: _Node, description: str) -> Kind:
        """Describe a kind by its table."""
        return Kind(name, description, tuple(self._list_keys([table], "")))

    def _list_keys(self, tables: list[_Node], prefix: str) -> Iterator[Key]:
        """Keys of the alternatives that a table may be, each once."""
        for name in dict.fromkeys(name for table in tables for name in table["properties"]):
            having = [table for table in tables if name in table["properties"]]
            within = "" if having == tables else " or ".join(map(_title_of, having))
            node = _unite(name, having)
            is_required = all(name in table.get("required", ()) for table in having)
            yield self._make_key(f"{prefix}{name}", node, is_required, within)
            nested: dict[str, list[_Node]] = {}
            for behind, table in self._tables(node):
                if table not in nested.setdefault(behind, []):
                    nested[behind].append(table)
            for behind, alternatives in nested.items():
                yield from self._list_keys(alternatives, f"{prefix}{name}{behind}.")

    def _make_key(self, path: str, node: _Node, is_required: bool, within: str) -> Key:
        parts = list(self._alternatives(node))
        described = _description_of(node) or _description_of(parts[0])
        units = [part["unit"] for part in self._numbers(node) if "unit" in part]
        bounds = [text for text in map(_bounds_of, self._numbers(node)) if text]
        return Key(
            path,
            " or ".join(dict.fromkeys(map(self._type_of, parts))),
            units[0] if units else "",
            bounds[0] if bounds else "",
            None if is_required else _default_of(node, parts),
            described,
            within,
            node.get("is_label", False),
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
        family = node["family"]
        kinds = self._found.setdefault(_name_of(family), {})
        for option in node.get("anyOf") or node["oneOf"]:
            for table in self._alternatives(option):
                kind = table["properties"]["kind"].get("const")
                if kind is not None and kind not in kinds:
                    parts = describe_kind(family, kind), table.get("description", "")
                    kinds[kind] = self.read_kind(kind, table, "\n\n".join(filter(None, parts)))

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
        return _TYPES[node["type"]] if "type" in node else "value"


def _unite(name: str, tables: list[_Node]) -> _Node:
    """Node of a key that several alternatives have, with what each says of it."""
    nodes: list[_Node] = [table["properties"][name] for table in tables]
    if all(node == nodes[0] for node in nodes):
        return nodes[0]
    said = (
        f"With ``{_title_of(table)}``: {_description_of(node)}"
        for table, node in zip(tables, nodes, strict=True)
    )
    return {**nodes[0], "anyOf": nodes, "description": " ".join(said)}


def _title_of(table: _Node) -> str:
    """Name of one of several tables: its kind, or its title in words.

    >>> _title_of({"title": "LogNormalMarginal", "properties": {}})
    'log normal marginal'
    """
    kind = table["properties"].get("kind", {}).get("const")
    words = re.sub(r"\B([A-Z])", r" \1", table["title"]).lower()
    return words if kind is None else f"kind = {inline_toml(kind)}"


def _description_of(node: _Node) -> str:
    """Description in one line; empty where Pydantic leaves out what would repeat a table's."""
    return " ".join(node.get("description", "").split())


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
