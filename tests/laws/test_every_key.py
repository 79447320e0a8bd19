"""Every key of every file changes a figure, is refused, or is told to be a label.

Each key of each class gets other values, made up from its type and bounds, in small base files
that switch features on (``every_key.toml``). Keys that need what none of them has are listed there
by the reason, and a listed one that changes something fails, so that the list can only shrink.
"""

import dataclasses
import inspect
import json
import tomllib
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel, ValidationError

from simulator.base import data
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.kinds import OneOf, PolicyOf, TableOf
from simulator.base.plugins import available, find_class
from simulator.commands.deployments import prepare_run
from simulator.commands.run import list_notes
from simulator.commands.schema import FILES
from simulator.commands.train import train
from simulator.config import engine
from simulator.config.calibration import Fit
from simulator.config.capacity import Question
from simulator.config.model import ModelSpec, _complete
from simulator.deployment.facts import facts_of
from simulator.engine import experts_table
from simulator.engine.timeline import run_plan
from simulator.planner.answer import make_answer
from simulator.planner.screen import screen
from simulator.planner.search import search
from simulator.planner.space import Space
from simulator.planner.store import Store
from simulator.planner.traffic import traffic_of
from simulator.planner.uncertainty.assessment import assess
from simulator.planner.uncertainty.run_bands import StepTables, _estimate_error
from simulator.results.metrics import summarise
from simulator.scenario.scenario import Scenario, TrainingScenario

TEXT = tomllib.loads(Path(__file__).with_name("every_key.toml").read_text(encoding="utf-8"))
IDLE = [key for keys in TEXT["idle"].values() for key in keys]
MOST_WORLDS, MOST_VALUES = 2, 4
HELD = ("model", "cluster", "calibration", "law", "engine")
"""Kinds of files that others name."""
LADDER = (1, 2, 4, 16, 100, 1000, 0.5, 0.1, 1e-3, 10.0, 1e6, 1e9, 1e12)
"""Numbers to try of a key that is absent."""


# Classes and their keys


def _marks(hint):
    yield from getattr(hint, "__metadata__", ())
    for part in get_args(hint):
        yield from _marks(part)


def _marks_of(field):
    return [*field.metadata, *_marks(field.annotation)]


def _types(hint):
    yield hint
    for part in get_args(hint):
        yield from _types(part)


def _list_classes():
    """Classes of all files by name: that of a policy is its family and kind."""
    found = {}

    def visit(cls, name):
        if cls in found.values() or inspect.isabstract(cls):
            return
        assert name not in found, f"two classes are called {name}"
        found[name] = cls
        for field in cls.model_fields.values():
            for mark in _marks_of(field):
                if isinstance(mark, OneOf | PolicyOf):
                    for kind in available(mark.family):
                        visit(find_class(mark.family, kind), f"{mark.family}.{kind}")
                elif isinstance(mark, TableOf):
                    visit(mark.model, mark.model.__name__)
            for hint in _types(field.annotation):
                if isinstance(hint, type) and issubclass(hint, BaseModel):
                    visit(hint, hint.__name__)

    for cls in FILES.values():
        visit(cls, cls.__name__)
    return found


CLASSES = _list_classes()
NAMES = {cls: name for name, cls in CLASSES.items()}


@cache
def _schema(cls):
    return cls.model_json_schema()


def _alternatives(node, cls):
    """What a key may be, without ``absent``."""
    if "$ref" in node:
        yield from _alternatives(_schema(cls)["$defs"][node["$ref"].rsplit("/", 1)[-1]], cls)
    elif "family" not in node and (options := node.get("anyOf") or node.get("oneOf")):
        for option in options:
            yield from _alternatives(option, cls)
    elif node.get("type") != "null":
        yield node


def _is_table(node, cls):
    """Whether a key holds tables only, which are asked for by their own keys."""
    inner = [node.get("items"), node.get("additionalProperties"), *node.get("prefixItems", ())]
    held = [part for one in inner if isinstance(one, dict) for part in _alternatives(one, cls)]
    is_named = node.get("type") == "object" and any("family" in part for part in held)
    return (
        "properties" in node
        or is_named
        or (bool(held) and all(_is_table(part, cls) for part in held))
    )


@cache
def _keys(cls):
    """Keys of a class that are no labels, by name: their alternatives in the schema."""
    nodes = _schema(cls).get("properties", {})
    found = {
        name: list(_alternatives(nodes[name], cls))
        for name in cls.model_fields
        if name in nodes
        and not nodes[name].get("is_label")
        and "const" not in nodes[name]
        and not (issubclass(cls, Fit) and name in TEXT["told"])
    }
    return {
        name: parts
        for name, parts in found.items()
        if not all(_is_table(part, cls) for part in parts)
    }


# Other values


def _others(cls, name, now):
    """Other values of a key than the one that it has, the likeliest to matter first."""
    field, parts = cls.model_fields[name], _keys(cls)[name]
    given = TEXT["values"].get(f"{NAMES[cls]}.{name}", TEXT["values"].get(name, []))
    found = [] if field.is_required() else [field.get_default(call_default_factory=True)]
    for part in parts:
        found += _make_values(part, now)
    return given + [one for one in found if one != now]


def _make_values(node, now):
    if node.get("type") == "boolean":
        return [not now]
    if "enum" in node:
        return node["enum"]
    if "family" in node:
        usual = node["family"], now.get("kind") if isinstance(now, dict) else None
        return [] if isinstance(now, tuple | list) else [*_kinds_without_keys(*usual)]
    if node.get("type") in ("integer", "number"):
        return _make_numbers(node, now)
    if node.get("type") == "string":
        return ["other"]
    if isinstance(now, tuple | list | dict) and now:
        cut = [now[:-1]] if "items" in node else []
        return [_scale(now, 2.0), _scale(now, 0.5), *cut]
    return []


def _kinds_without_keys(family, now):
    for kind in available(family):
        fields = find_class(family, kind).model_fields.items()
        if kind != now and not any(f.is_required() and name != "kind" for name, f in fields):
            yield {"kind": kind}


def _make_numbers(node, now):
    is_known = isinstance(now, int | float) and not isinstance(now, bool)
    found = (2 * now or 1, now / 2, now + 1, 0.7 * now) if is_known else LADDER
    if node["type"] == "integer":
        found = dict.fromkeys(int(one) for one in found if one == int(one))
    low = node.get("minimum", node.get("exclusiveMinimum", -np.inf))
    high = node.get("maximum", np.inf)
    is_above = "exclusiveMinimum" in node
    inside = [one for one in found if low <= one <= high and not (is_above and one == low)]
    return inside if node["type"] == "integer" else [float(one) for one in inside]


def _scale(value, factor):
    if isinstance(value, dict):
        return {key: _scale(one, factor) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_scale(one, factor) for one in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return type(value)(max(value * factor, 1)) if isinstance(value, int) else value * factor


# Base files


def _walk(value, path=(), of=None):
    """Instances in a part, with their paths; tables of policies are read by their kinds.

    Args:
        of: family, or model, that tables in ``value`` are of.
    """
    if isinstance(value, BaseModel):
        yield path, value
        for name, field in type(value).model_fields.items():
            marks = [m for m in _marks_of(field) if isinstance(m, PolicyOf | TableOf)]
            inner = getattr(marks[0], "family", None) or marks[0].model if marks else None
            yield from _walk(getattr(value, name), (*path, name), inner)
    elif isinstance(value, dict) and isinstance(of, str) and "kind" in value:
        if value["kind"] in available(of):
            table = {key: one for key, one in value.items() if key != "kind"}
            yield from _walk(validate(find_class(of, value["kind"]), table, "base"), path)
    elif isinstance(value, dict) and isinstance(of, type):
        yield from _walk(validate(of, value, "base"), path)
    elif isinstance(value, tuple | list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in items:
            yield from _walk(one, (*path, key), of)


def _thaw(value):
    """Tables and lists that can be changed."""
    if isinstance(value, dict):
        return {key: _thaw(one) for key, one in value.items()}
    return [_thaw(one) for one in value] if isinstance(value, tuple | list) else value


def _rebuild(part, places):
    """The part with other values at some paths.

    Raises:
        UserError, ValidationError: if it is refused.
    """
    if isinstance(part, tuple):
        own = [
            {path[1:]: value for path, value in places.items() if path[0] == number}
            for number in range(len(part))
        ]
        return tuple(
            _rebuild(one, some) if some else one for one, some in zip(part, own, strict=True)
        )
    table = _thaw(part.model_dump())
    for (*above, name), value in places.items():
        node = table
        for key in above:
            node = node[key]
        node[name] = _thaw(value)
    if hasattr(part, "folder"):
        return type(part).read(table, part.where, part.folder)
    return type(part).model_validate(table)


class World:
    """A base file and all files that it uses."""

    def __init__(self, name, folder):
        own = dict(TEXT["worlds"][name])
        self.name, self.kind = name, own.pop("of", "scenario")
        base = TEXT["base"][self.kind]
        table = {"name": name, "seed": 1}
        if "deployment" in base:
            table["deployments"] = [
                {**base["deployment"], **own.pop("deployment", {})},
                *own.pop("besides", []),
            ]
        for key in base.keys() - {"deployment"}:
            is_table = isinstance(base[key], dict)
            table[key] = {**base[key], **own.pop(key, {})} if is_table else base[key]
        table |= own
        cls = {"scenario": Scenario, "training": TrainingScenario, "plan": Question}[self.kind]
        self.parts = {"file": cls.read(table, name, folder)}
        for model, keys in TEXT["models"].items():
            if f"'model': '{model}'" in repr(table):
                spec = validate(ModelSpec, {"name": model, **keys}, model)
                self.parts["model", model, folder] = _complete(spec)
        with self.open(self.parts) as loaded:
            self.base = list(FIGURES[self.kind](self.parts["file"]))
        self.parts |= {key: part for key, part in loaded.items() if key[0] in HELD}
        self.found = {}
        for key, part in self.parts.items():
            if isinstance(part, BaseModel | tuple):
                for path, one in _walk(part):
                    self.found.setdefault(type(one), []).append((key, path, one))

    @staticmethod
    @contextmanager
    def open(parts):
        """Let these files be found in the place of those on disk; returns what is loaded."""
        read, engines = engine.read_engine, {}

        def read_engine(path):
            key = "engine", path
            return engines.setdefault(key, parts[key] if key in parts else read(path))

        with data.cache_lookups(), patch.object(engine, "read_engine", read_engine):
            loaded = data._KNOWN.get().loaded
            loaded |= {key: part for key, part in parts.items() if key != "file"}
            found = {}
            yield found
            found |= loaded | engines

    def change(self, cls, name, number):
        """Make the parts with the ``number``-th other value of a key where the class is; ``None``
        where no instance has so many.
        """
        places = {}
        for key, path, one in self.found[cls]:
            others = _others(cls, name, getattr(one, name))
            if number < len(others):
                places.setdefault(key, {})[*path, name] = others[number]
        if not places:
            return None
        return self.parts | {key: _rebuild(self.parts[key], own) for key, own in places.items()}

    def differs(self, parts):
        """Whether a figure differs from the base's."""
        with self.open(parts), closing(FIGURES[self.kind](parts["file"])) as found:
            return any(own != base for own, base in zip(found, self.base, strict=True))

    def sets(self, cls, name):
        """Whether the base gives the key."""
        return any(
            name in one.model_fields_set and getattr(one, name) not in (None, (), {})
            for _, _, one in self.found[cls]
        )


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, few_draws):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "prefixes.jsonl").write_text(_write_prefixes())
    with pytest.MonkeyPatch.context() as patched:
        for name in ("_DRAWN_TOKENS", "_FEWEST_DRAWS", "_MOST_DRAWS"):
            patched.setattr(experts_table, name, 1)
        yield [World(name, folder) for name in TEXT["worlds"]]


def _write_prefixes():
    """A trace in which six chats come twice, and pairs of them begin alike."""
    rows = [
        {
            "chat_id": number,
            "timestamp": 0.03 * number,
            "input_length": 16 * 8 - number,
            "output_length": 4 + number % 7,
            "hash_ids": [chat % 3, *range(10 * chat + 10, 10 * chat + 17)],
        }
        for number, chat in enumerate([*range(6), *range(6)])
    ]
    rows[4:6] = rows[5], rows[4]
    return "\n".join(map(json.dumps, rows))


# Figures


def _numbers(found):
    """All numbers of a result, without its texts, in a form that can be compared."""
    if isinstance(found, pd.DataFrame):
        return {name: _numbers(found[name].to_numpy()) for name in found}
    if isinstance(found, np.ndarray):
        return found.tobytes() if found.dtype.kind in "biuf" else None
    if dataclasses.is_dataclass(found):
        return {one.name: _numbers(getattr(found, one.name)) for one in dataclasses.fields(found)}
    if isinstance(found, dict):
        return {key: _numbers(one) for key, one in found.items()}
    if isinstance(found, tuple | list):
        return [_numbers(one) for one in found]
    return repr(found) if isinstance(found, int | float) else None


def _serve(scenario):
    """Figures of a scenario, the cheapest first: memory, the run's tables, its summary and bands,
    and what is said of the numbers.
    """
    plans, trace = prepare_run(scenario)
    for plan in plans:
        for pool in plan.pools:
            capacity = dataclasses.replace(pool.serving.capacity, share=0.0)
            yield _numbers(capacity), pool.serving.capacity.tokens
        tables, slo = StepTables(), scenario.workload.slo
        record = run_plan(plan, trace, fill=tables.slow(1.0))
        yield _numbers(record)
        summary = summarise([plan], [record], slo)
        yield _numbers(summary)
        error = _estimate_error(plan, trace, float(summary["tpot_p50_s"].iloc[0]))
        yield _numbers((error.bands, error.parts))
        facts = facts_of(plan)
        yield facts["total_parameters"], facts["active_parameters"]
        yield [row["kind"] for row in facts["assumptions"]], facts["warnings"]
    yield list(map(str, list_notes(scenario, plans, trace)))


def _train(scenario):
    results = train(scenario)
    yield _numbers(results.summary)
    told = ("band", "memory_bytes", "later_steps", "stages_s")
    yield [
        _numbers({key: facts[key] for key in told}) for facts in results.run["deployments"].values()
    ]
    yield results.run["notes"]


def _plan(question):
    """Figures of a plan, the cheapest first: what is screened, and the answer."""
    folder = Path(question.folder)
    space, traffic = Space(question, folder), traffic_of(question, folder)
    for place in range(len(space.models)):
        for machines in range(len(space.machines)):
            found = screen(space, traffic, place, machines)
            yield _numbers([found.candidates, found.num_legal, found.front])
    result = search(question, folder, Store(None), workers=1)
    answer = make_answer(result, assess(result, workers=1)).model_dump(mode="json")
    yield _numbers(answer)


FIGURES = {"scenario": _serve, "training": _train, "plan": _plan}


def _ask(worlds, cls, name):
    """Say what another value of a key does."""
    worlds = [world for world in worlds if cls in world.found]
    if own := TEXT["look"].get(f"{NAMES[cls]}.{name}", TEXT["look"].get(NAMES[cls])):
        worlds = [world for world in worlds if world.name in own]
    worlds.sort(key=lambda world: not world.sets(cls, name))
    is_refused = False
    for world in worlds[:MOST_WORLDS]:
        for number in range(MOST_VALUES):
            try:
                parts = world.change(cls, name, number)
                if parts is None:
                    break
                if world.differs(parts):
                    return "changes"
            except (UserError, ValidationError):
                is_refused = True
    return "is refused" if is_refused else "is idle" if worlds else "is nowhere"


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_changes_a_figure_or_is_refused(worlds, name):
    keys = {} if name in IDLE else _keys(CLASSES[name])
    found = {key: _ask(worlds, CLASSES[name], key) for key in keys}
    idle = {key for key, does in found.items() if does in ("is idle", "is nowhere")}
    assert idle == {key for key in keys if f"{name}.{key}" in IDLE}


def test_the_list_names_what_there_is():
    known = {*CLASSES, *(f"{name}.{key}" for name, cls in CLASSES.items() for key in _keys(cls))}
    assert known >= set(IDLE)
    assert len(IDLE) == len(set(IDLE))
