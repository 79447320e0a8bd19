"""moesim: which serves your traffic better, a mixture-of-experts model or a dense one, and on what.

The command line as functions: :func:`load_scenario` and :func:`run`, :func:`load_question` and
:func:`plan`, :func:`train` and :func:`plan_training`, :func:`sweep`, :func:`execute`,
:func:`validate`, :func:`check`, :func:`list_kinds`; results of a run are written by
:func:`write_results` and read back by :func:`load_results`, folders of any kind are shown by
:func:`build_report`. Nothing is imported before it is used.

Data flows one way: ``config`` (inert descriptions), ``workload`` and ``policies`` -> ``work``
(exact counts) -> ``cost`` and ``step`` (seconds) -> ``deployment`` (frozen) -> ``engine`` (virtual
time) or ``runtime`` (real shards) -> ``results`` -> ``report``.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Executed",
    "LostError",
    "Question",
    "Results",
    "Scenario",
    "Scoreboard",
    "Sweep",
    "TrainingAnswer",
    "TrainingResults",
    "UserError",
    "__version__",
    "allow_code",
    "build_report",
    "check",
    "describe_columns",
    "describe_keys",
    "execute",
    "list_kinds",
    "load_question",
    "load_results",
    "load_scenario",
    "make_schema",
    "plan",
    "plan_training",
    "run",
    "sweep",
    "train",
    "validate",
    "write_results",
]

_HOMES = {
    "base.errors": ("LostError", "UserError"),
    "base.trust": ("allow_code",),
    "commands.plan": ("plan", "plan_training"),
    "commands.catalogue": ("list_kinds",),
    "commands.check": ("check",),
    "commands.execute": ("execute",),
    "commands.report": ("build_report", "load_results", "write_results"),
    "commands.run": ("run",),
    "commands.schema": ("describe_keys", "make_schema"),
    "commands.sweep": ("sweep",),
    "commands.train": ("train",),
    "lab.commands.validate": ("validate",),
    "config.capacity": ("Question",),
    "results.answer": ("Answer",),
    "results.executed": ("Executed",),
    "results.folder": ("Results", "describe_columns"),
    "lab.results.scores": ("Scoreboard",),
    "results.sweep": ("Sweep",),
    "results.training": ("TrainingResults",),
    "results.training_answer": ("TrainingAnswer",),
    "scenario.jobs": ("load_question", "load_scenario"),
    "scenario.scenario": ("Scenario",),
}
"""Public names by the module that defines them, which is imported when one is first used; type
checkers read ``__init__.pyi``."""


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'simulator' has no attribute '{name}'")
    found = getattr(importlib.import_module(f"simulator.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
