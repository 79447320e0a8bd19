"""Folders of figures: a figure in a new file, or in one of its subject, is on its page."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from itertools import chain
from types import ModuleType
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import plotly.graph_objects as go

from simulator.base import plugins
from simulator.base.errors import UserError

Drawn: TypeAlias = go.Figure | dict[str, go.Figure] | None
"""One plot, several by heading (such as one a deployment), or nothing where there is nothing to
show."""
Width: TypeAlias = Literal["full", "half", "quarter", "third"]
"""Width of each plot of a figure on a wide screen; thirds share a row evenly where there are
two."""
Subject = TypeVar("Subject")
"""Subject of a page: the results of a run, an execution, a scoreboard."""


class Figure(ABC, Generic[Subject]):
    """A figure of a page: a public class of a file in the page's folder; files that begin with
    ``_`` hold shared drawing code.
    """

    title: str
    section: str
    """Heading of the part of the page that it belongs to."""
    definition: str
    """Caption: one line that says what is drawn, ending in a full stop."""
    absent: str
    """Line that stands in its place when there is nothing to draw: why."""
    order: int
    """Place on the page; a section stands where its first figure does."""
    width: Width = "half"

    @abstractmethod
    def draw(self, subject: Subject, /) -> Drawn:
        """Draw the figure.

        Trace names become the legend, which the page draws; deployments take their label and colour
        from :mod:`simulator.report.style`; axis titles end in their unit in parentheses.
        """


def load_figures(family: str) -> list[Figure[Any]]:
    """Make every figure of a folder, such as ``"report.figures"``, in the order of its page.

    Raises:
        UserError: if a file defines no figure.
    """
    package = plugins.package_of(family).__name__
    modules = (importlib.import_module(f"{package}.{k}") for k in plugins.available(family))
    return sorted(chain.from_iterable(map(make_figures, modules)), key=lambda one: one.order)


def make_figures(module: ModuleType) -> list[Figure[Any]]:
    """Make the figures that a file defines.

    Raises:
        UserError: if it defines none.
    """
    found = [
        member()
        for name, member in vars(module).items()
        if isinstance(member, type)
        and issubclass(member, Figure)
        and member.__module__ == module.__name__
        and name[0] != "_"
    ]
    if not found:
        raise UserError(
            f"{module.__file__}: must define a public class derived from {__name__}.Figure"
        )
    return found


def plots(figure: Figure[Subject], subject: Subject) -> dict[str, go.Figure]:
    """A figure's plots by heading: empty where there is one plot; none where nothing is to be
    shown.
    """
    drawn = figure.draw(subject)
    if drawn is None:
        return {}
    return drawn if isinstance(drawn, dict) else {"": drawn}
