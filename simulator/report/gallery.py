"""Folders of figures, one a file: a new file is a new figure on its page."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
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
    """A figure of a page: the one public class of its file; files that begin with ``_`` hold shared
    drawing code.
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
        UserError: if a file defines no figure, or several.
    """
    package = plugins.package_of(family).__name__
    modules = (importlib.import_module(f"{package}.{k}") for k in plugins.available(family))
    return sorted(map(make_figure, modules), key=lambda figure: figure.order)


def make_figure(module: ModuleType) -> Figure[Any]:
    """Make the figure that a file defines.

    Raises:
        UserError: if it defines none, or several.
    """
    found = [
        member
        for name, member in vars(module).items()
        if isinstance(member, type)
        and issubclass(member, Figure)
        and member.__module__ == module.__name__
        and name[0] != "_"
    ]
    if len(found) != 1:
        raise UserError(
            f"{module.__file__}: must define exactly one public class derived from "
            f"{__name__}.Figure, found {', '.join(one.__name__ for one in found) or 'none'}"
        )
    figure: Figure[Any] = found[0]()
    return figure


def plots(figure: Figure[Subject], subject: Subject) -> dict[str, go.Figure]:
    """A figure's plots by heading: empty where there is one plot; none where nothing is to be
    shown.
    """
    drawn = figure.draw(subject)
    if drawn is None:
        return {}
    return drawn if isinstance(drawn, dict) else {"": drawn}
