"""Runs the scenarios: every file of the folder is one, in the order that it states."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Protocol, cast

from tests.benchmarks import scenarios
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Growth, Row


class Scenario(Protocol):
    """What a file in ``scenarios`` has."""

    ORDER: int
    """Its place among what is run."""
    OPT_IN: bool
    """Whether it is run only where it is named."""

    def measure(self, effort: Effort, tell: Callable[[str], None]) -> Iterator[Row | Growth]:
        """Yield each finding when it is there.

        Args:
            tell: told what is measured next.
        """
        ...


def list_scenarios() -> dict[str, Scenario]:
    """Every scenario by its file's name, in order."""
    names = [found.name for found in pkgutil.iter_modules(scenarios.__path__)]
    modules: dict[str, ModuleType] = {
        name: importlib.import_module(f"{scenarios.__name__}.{name}") for name in names
    }
    ordered = sorted(modules, key=lambda name: modules[name].ORDER)
    return {name: cast(Scenario, modules[name]) for name in ordered}


def choose(only: Iterable[str] | None) -> dict[str, Scenario]:
    """The scenarios that are named; by default all that need not be."""
    every = list_scenarios()
    if only is None:
        return {name: scenario for name, scenario in every.items() if not scenario.OPT_IN}
    return {name: scenario for name, scenario in every.items() if name in only}
