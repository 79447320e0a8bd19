"""``moesim explore``: a scenario whose keys are controls, simulated anew at each change."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.reading import read_text, read_toml
from simulator.base.text import inline_toml
from simulator.commands.catalogue import list_files
from simulator.commands.run import run
from simulator.commands.schema import Key, Kind, describe_keys
from simulator.commands.train import train
from simulator.config.cluster import available_clusters
from simulator.results import metrics, training
from simulator.results.folder import Results
from simulator.results.results_folder import Cell, TextTable
from simulator.scenario.jobs import (
    SCENARIOS,
    Overrides,
    find_job,
    load_job,
    override_all,
    override_texts,
)
from simulator.scenario.scenario import Scenario, TrainingScenario

AnyResults: TypeAlias = Results | training.TrainingResults
QUICK_REQUESTS = 2000
"""Requests of a quick run, at most: two deployments of it take half a second."""
_LEFT_OUT = ("name", "notes", "execution")
"""Keys of a scenario with which no simulated figure changes."""
_USUAL = (
    "workload.rate_scale",
    "deployments.replicas",
    "deployments.engine",
    "deployments.parallel.tp",
    "deployments.parallel.ep",
    "training.sequence_tokens",
)
"""Keys that are asked for most, which stand with those that have a value."""
_NUMBERED = "[]"
_KIND = re.compile(r'kind = "(.*?)"')
_WHOLE = ("table", "list of table", "list of table or text")
"""Types of keys whose own keys are controls, or that are too long for one."""


class Control(NamedTuple):
    """A key that can be changed."""

    path: str
    """Dotted path, as ``--set`` takes it."""
    label: str
    """The path in its group."""
    value: str
    """Value as ``--set`` takes it; empty where the file has none."""
    default: str
    """Value that holds where the file has none."""
    unit: str
    description: str
    """Meaning, and bounds."""
    options: tuple[str, ...] = ()
    """Values to choose among."""
    is_open: bool = True
    """Whether any other value may stand, too."""
    is_policy: bool = False
    """Whether the value is the kind of a policy, whose own keys are further controls."""


class Group(NamedTuple):
    """Keys of one table."""

    title: str
    usual: list[Control]
    """Keys that have a value, or are asked for most."""
    others: list[Control]


class View(NamedTuple):
    """A scenario with changes, and what came of it."""

    groups: list[Group]
    toml: str
    """The file with the changes, its comments kept."""
    command: str
    """Command that does the same."""
    results: AnyResults | None
    """``None`` where the scenario was refused."""
    refusal: str = ""


class Asked(Frozen):
    """A change that a page asks for."""

    page: str
    """Page that asks, of several that are open."""
    number: int
    """Number of the change on its page."""
    changes: tuple[tuple[str, str], ...]
    """Paths and values, as ``--set`` takes them."""
    is_quick: bool


class Exploration:
    """A scenario file, of serving or of training, whose keys are changed and simulated.

    Args:
        source: path of the file, or name of a shipped scenario.
        overrides: changes to begin with, as :func:`load_scenario` takes them.

    Raises:
        UserError: if there is no such file, or it is wrong.
    """

    def __init__(self, source: str, overrides: Overrides = ()) -> None:
        job = load_job(source, SCENARIOS, overrides)
        self.is_serving = isinstance(job, Scenario)
        self.path, self._source = find_job(source, SCENARIOS), source
        self.given = dict(text.split("=", 1) for text in override_texts(overrides))
        """Changes to begin with, as texts by path."""
        self._starts: dict[tuple[str, bool], View] = {}

    def start(self, *, is_quick: bool = True) -> View:
        """View of the file as it is now, before any change."""
        return self.view(self.given, is_quick=is_quick)

    def view(self, changes: Mapping[str, str], *, is_quick: bool = True) -> View:
        """Simulate the scenario with changes.

        Args:
            changes: values as texts by dotted path, as ``--set`` takes them, in their order.
            is_quick: whether only the first :data:`QUICK_REQUESTS` requests are served.
        """
        try:
            text = read_text(self.path)
        except UserError as error:
            return View([], "", "", None, str(error))
        if dict(changes) != self.given:
            return self._view(text, changes, is_quick)
        if (text, is_quick) not in self._starts:
            self._starts[text, is_quick] = self._view(text, changes, is_quick)
        return self._starts[text, is_quick]

    def _view(self, text: str, changes: Mapping[str, str], is_quick: bool) -> View:
        import tomlkit

        texts = [f"{path}={value}" for path, value in changes.items()]
        words = ["moesim", "run", self._source, *(word for one in texts for word in ("--set", one))]
        groups, written, results, refusal = list[Group](), "", None, ""
        try:
            groups = self.list_groups(read_toml(self.path))
            groups = self._list_changed(texts)
            job = load_job(self._source, SCENARIOS, texts)
            document = tomlkit.parse(text)
            override_all(document, texts)
            written = tomlkit.dumps(document)
            results = self._simulate(job, is_quick)
        except UserError as error:
            refusal = str(error)
        return View(groups, written, shlex.join(words), results, refusal)

    def _list_changed(self, texts: list[str]) -> list[Group]:
        table = read_toml(self.path)
        override_all(table, texts)
        return self.list_groups(table)

    def _simulate(self, job: Scenario | TrainingScenario, is_quick: bool) -> AnyResults:
        if isinstance(job, TrainingScenario):
            return train(job)
        if is_quick:
            most = min(job.workload.num_requests or QUICK_REQUESTS, QUICK_REQUESTS)
            workload = job.workload.model_copy(update={"num_requests": most})
            job = job.model_copy(update={"workload": workload})
        return run(job)

    @cached_property
    def _kinds(self) -> dict[str, dict[str, Kind]]:
        return describe_keys("scenario" if self.is_serving else "training")

    def list_groups(self, table: Mapping[str, Any]) -> list[Group]:
        """Keys of the file's table as controls, those of each deployment apart."""
        groups: dict[str, Group] = {}
        (kind,) = self._kinds["files"].values()
        for control in self._list_controls(kind.keys, table, ""):
            head, _, rest = control.path.partition(".")
            if head in _LEFT_OUT:
                continue
            place, title, label = (head, head, rest) if rest else ("", "scenario", head)
            if head == "deployments":
                number, _, label = rest.partition(".")
                place, title = number, str(table[head][int(number)].get("name", number))
            group = groups.setdefault(place, Group(title, [], []))
            is_usual = control.value or f"{head}.{label}" in _USUAL
            (group.usual if is_usual else group.others).append(control._replace(label=label))
        order = sorted(groups, key=lambda place: int(place) if place.isdecimal() else -1)
        return [groups[place] for place in order]

    def _list_controls(
        self, keys: tuple[Key, ...], table: Mapping[str, Any], above: str
    ) -> Iterator[Control]:
        """Keys of a table as controls, those of entries of lists and of policies in it, too."""
        has_own = {key.path for key in keys if key.default == ""}
        for key in keys:
            for path, node, name in _find_places(key.path.split("."), table, has_own):
                value = node.get(name)
                family = key.type.removeprefix("table of ").partition(" or ")[0]
                if key.type.startswith("table of ") and family in self._kinds:
                    yield from self._list_policies(key, f"{above}{path}", value, family)
                elif not isinstance(value, dict) and not (
                    key.is_label or key.type in _WHOLE or (key.within and value is None)
                ):
                    yield _make_control(key, f"{above}{path}", value)

    def _list_policies(self, key: Key, path: str, value: object, family: str) -> Iterator[Control]:
        kinds = self._kinds[family]
        own = value if isinstance(value, dict) else {}
        chosen = str(own.get("kind", "" if value is None else value))
        yield Control(
            path,
            "",
            chosen,
            _write_default(key),
            "",
            key.description,
            tuple(kinds),
            is_open=False,
            is_policy=True,
        )
        if chosen in kinds and own:
            inner = tuple(one for one in kinds[chosen].keys if one.path != "kind")
            yield from self._list_controls(inner, own, f"{path}.")


def _find_places(
    parts: list[str], node: Mapping[str, Any], has_own: set[str], above: str = "", asked: str = ""
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Places that a key has in a table: dotted path, the table that may hold it, and its name
    there; none in tables that are absent and have no defaults.
    """
    first, rest = parts[0], parts[1:]
    name = first.removesuffix(_NUMBERED)
    if not rest:
        yield f"{above}{name}", node, name
        return
    asked = f"{asked}{first}"
    inner = node.get(name, {} if asked in has_own else None)
    entries = enumerate(inner) if isinstance(inner, list) and first != name else ()
    for number, entry in entries:
        if isinstance(entry, dict):
            yield from _find_places(rest, entry, has_own, f"{above}{name}.{number}.", f"{asked}.")
    if isinstance(inner, dict) and first == name:
        yield from _find_places(rest, inner, has_own, f"{above}{name}.", f"{asked}.")


def _make_control(key: Key, path: str, value: object) -> Control:
    name = path.rpartition(".")[2]
    options, is_open = _list_options(key, name)
    text = "" if value is None else value if isinstance(value, str) else inline_toml(value)
    bounds = f" ({key.bounds})" if key.bounds else ""
    told = f"{key.description}{bounds}"
    return Control(path, "", text, _write_default(key), key.unit, told, options, is_open)


def _write_default(key: Key) -> str:
    if key.default in (None, ""):
        return ""
    if key.type.startswith("table of ") and (kind := _KIND.search(key.default)):
        return kind[1]
    return "not set" if key.default == "absent" else key.default.strip('"')


def _list_options(key: Key, name: str) -> tuple[tuple[str, ...], bool]:
    """Values to choose among, and whether others may stand."""
    parts = key.type.split(" or ")
    if key.type == "true or false":
        return ("true", "false"), False
    if all(part.startswith('"') for part in parts):
        return tuple(part.strip('"') for part in parts), False
    if name == "cluster":
        return tuple(available_clusters()), True
    if name in ("model", "engine", "accelerator"):
        return tuple(list_files(f"{name}s")), True
    return (), True


def compare(before: AnyResults, now: AnyResults) -> TextTable:
    """Table of the key metrics, a row for each deployment, with what those that moved were
    before.
    """
    is_serving = isinstance(now, Results)
    names = metrics.KEY_METRICS if is_serving else tuple(training.METRICS)
    labels = metrics.METRICS if is_serving else training.METRICS
    write = metrics.metric if is_serving else training.write_metric
    new, old = (one.summary.set_index("deployment") for one in (now, before))
    shown = [name for name in names if new[name].notna().any()]
    rows: list[list[Cell | str]] = [["Deployment", *(labels[name].label for name in shown)]]
    for deployment in now.deployments:
        currency = str(now.facts(deployment).get("currency") or "")
        cells = []
        for name in shown:
            text = write(name, float(new[name][deployment]), currency)
            was = write(name, float(old[name].get(deployment, math.nan)), currency)
            moved = deployment in old.index and was != text
            cells.append(Cell(text, f"was {was}" if moved else ""))
        rows.append([deployment, *cells])
    return TextTable("Key metrics", rows)
