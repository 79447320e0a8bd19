"""Printing of commands: tables, notes, progress, and the screen that they go to."""

from __future__ import annotations

import json
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.segment import Segment
from rich.text import Text

from simulator.base import trust
from simulator.base.errors import UserError
from simulator.base.progress import Progress
from simulator.base.text import one_line, visible

if TYPE_CHECKING:
    import pandas as pd

    from simulator.results.results_folder import ResultsFolder, Verdict


class Screen(Console):
    """Console (:class:`rich.console.Console`) without markup, emoji and highlighting, on which
    control characters of what is printed are visible.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def say(self, text: str | Text, style: str = "") -> None:
        """Print a text whose lines are left as long as they are."""
        self.print(text, style=style, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape control characters that Rich would leave in."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Escape everything that is printed, tables and bars included; Rich's own control codes
        stay.
        """
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


err = Screen(stderr=True)
out = Screen()


def option(text: str, metavar: str | None = None, flag: str = "", **more: Any) -> Any:
    """An option of a command.

    Args:
        text: its help.
        metavar: what stands for its value there.
        flag: its name, by default that of the parameter.
        more: as of :func:`typer.Option`.
    """
    return typer.Option(*filter(None, [flag]), metavar=metavar, help=text, **more)


def argument(text: str, metavar: str | None = None, **more: Any) -> Any:
    """An argument of a command, with its help and what stands for it there."""
    return typer.Argument(metavar=metavar, help=text, **more)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--seed {text}: must be a whole number of at least 0")
    return int(text)


ScenarioFile = Annotated[str, argument("A scenario's TOML file, or the name of a shipped one.")]
Out = Annotated[
    Path | None,
    option("Folder to write; by default reports/out/<name>.", "DIR", flag="--out"),
]
AsJson = Annotated[bool, option("Print the result as JSON on standard output.", flag="--json")]
Seed = Annotated[
    int | None,
    option("Overrides the scenario's seed.", "N", flag="--seed", parser=_seed),
]
SimulatedNodes = Annotated[
    int | None,
    option(
        "Spread the ranks over N Ray nodes on this machine.", "N", flag="--simulated-nodes", min=1
    ),
]
Address = Annotated[
    str | None,
    option(
        "Run on the Ray cluster there; by default Ray is started here.",
        "HOST:PORT",
        flag="--address",
    ),
]
Workers = Annotated[
    int | None,
    option(
        "Processes of a plan, a sweep or the deployments of a run; by default one a core, or "
        "one a CPU of the cluster, and for a run one.",
        "N",
        flag="--workers",
        min=1,
    ),
]
Set = Annotated[
    list[str] | None,
    option("Override any key, such as workload.num_requests=1000.", "PATH=VALUE", flag="--set"),
]


def _allow_code(is_allowed: bool) -> bool:
    trust.allow_code(is_allowed)
    return is_allowed


AllowCode = Annotated[
    bool,
    option(
        "Let kind = 'my_package.my_policy' run code that lies in the current folder, or that "
        "no installed package holds.",
        flag=trust.FLAG,
        callback=_allow_code,
    ),
]
"""Option of every command that reads a scenario, or a file that one names. Its callback does it
all, so that no command can take the option and forget it."""


def emit(value: object) -> None:
    """Print a result as JSON, in one line."""
    print(json.dumps(value))  # noqa: T201


def rows_of(table: pd.DataFrame) -> object:
    """Rows of a table for JSON; what is not a number is null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def find_folder(out_folder: Path | None, where: str | Path, suffix: str = "") -> Path:
    """Folder that a command writes, by default named after the file that it was given."""
    return out_folder or Path("reports/out") / f"{Path(where).stem}{suffix}"


def finish(
    as_json: bool,
    folder: Path,
    numbers: Mapping[str, object],
    show: Callable[[], None],
    notes: Iterable[str] = (),
    file: str = "report.html",
) -> None:
    """Print what a command found, its notes, and where its folder is.

    Args:
        numbers: results beside the folder in JSON.
        show: prints the findings for people.
        file: main file of the folder.
    """
    if as_json:
        emit({"folder": str(folder), **numbers})
    else:
        show()
    say_notes(notes)
    err.say(f"{Path(file).stem}: {folder / file}")


def refuse_options(why: str, **given: bool) -> None:
    """Refuse options that a command has no use for.

    Raises:
        UserError: naming the first one.
    """
    for option, is_given in given.items():
        if is_given:
            raise UserError(f"--{option}: {why}; leave it out")


def say_notes(notes: Iterable[str]) -> None:
    """Say on standard error which defaults were used, a line each."""
    for note in notes:
        err.say(f"note: {note}", "yellow")


def print_rows(rows: dict[str, str]) -> None:
    """Print names with their descriptions; long texts are wrapped on a terminal, and stay on one
    line where another program reads.
    """
    name_width = max((len(one_line(name)) for name in rows), default=0) + 2
    for name, text in rows.items():
        lines = (
            textwrap.wrap(text, max(20, out.width - name_width), break_on_hyphens=False)
            if out.is_terminal
            else [one_line(text)]
        )
        for number, line in enumerate(lines or [""]):
            row = Text(("" if number else one_line(name)).ljust(name_width), "bold")
            out.say(row.append(line, "not bold"))


def print_points(sentences: Iterable[object], kinds: Iterable[Mapping[str, str]] = ()) -> None:
    """Print sentences as a list, warnings behind ``!``.

    Args:
        kinds: severity of each finding, where they are some.
    """
    none: Mapping[str, str] = {}
    for sentence, kind in zip_longest(sentences, kinds, fillvalue=none):
        mark = "!" if kind.get("severity") == "warning" else "-"
        out.say(fill(str(sentence), f"{mark} ", "  "))


def print_verdict(verdict: Verdict) -> None:
    """Print the headline in bold, and a line for each reason."""
    out.say(fill(verdict["headline"]), "bold")
    print_points(verdict["reasons"], verdict.get("findings", ()))
    out.print()


def print_findings(found: ResultsFolder) -> None:
    """Print the verdict and the tables."""
    print_verdict(found.verdict)
    for table in found.list_tables():
        print_table(table.rows)
        out.print()


def print_table(rows: Iterable[Iterable[object]]) -> None:
    """Print rows of a table in columns, the first row in bold: names on the left, numbers on the
    right.
    """
    lines = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, (name, *cells) in enumerate(lines):
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        out.say("   ".join((name.ljust(widths[0]), *shown)), "" if number else "bold")


def fill(text: str, first: str = "", others: str = "") -> str:
    """Wrap a text on a terminal, behind ``first`` and in further lines ``others``; in one line
    where another program reads.
    """
    if not out.is_terminal:
        return first + one_line(text)
    return textwrap.fill(
        text, out.width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )


def plain(value: object) -> str:
    """Write a value for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning in one line; called like :func:`warnings.showwarning`."""
    err.say(f"warning: {message}", "yellow")


def show_compiling() -> None:
    """Say why a first run takes longer to begin."""
    text = "compiling, once for this version and processor: about half a minute"
    err.say(text, "dim")


class StoppedError(Exception):
    """Error for Ctrl-C where some results are kept; its text names them."""


class _Bars(RichProgress):
    """Progress bars, and under them the best result so far."""

    best = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.best:
            yield Text(f"  best so far: {self.best}", overflow="ellipsis", no_wrap=True)


class _TimeColumn(ProgressColumn):
    """Column of a bar with the elapsed time of a part, and an estimate of the rest."""

    def render(self, task: Task) -> Text:
        elapsed_s = task.finished_time if task.finished else task.elapsed
        total = None if task.total is None else int(task.total)
        return Text(tell_time(elapsed_s or 0.0, int(task.completed), total))


@contextmanager
def progress(
    unit: str = "requests", waiting: str = "checking models, clusters and requests"
) -> Iterator[Progress]:
    """A bar a name on standard error, counting in ``unit``; where that is no terminal, a line for
    each, and another whenever ten seconds have passed without one.

    ``waiting`` is what is said before the first name comes.
    """
    if err.is_terminal:
        with _bars(unit, waiting) as tick:
            yield tick
        return
    lines = Lines(unit, waiting, err.say)
    with keep_saying(lines):
        yield lines


@contextmanager
def _bars(unit: str, waiting: str) -> Iterator[Progress]:
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}", markup=False),
        _TimeColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with _Bars(*columns, console=err) as bars:
        before = bars.add_task(waiting, total=None, count="")

        def tick(name: str, done: int, total: int | None, best: str = "", /) -> None:
            name = one_line(name)
            if name not in tasks:
                bars.update(before, visible=False)
                tasks[name] = bars.add_task(name, total=total, count="")
            bars.best = one_line(best) or bars.best
            count = f"{done:,} of {total:,} {unit}".rstrip() if total else ""
            bars.update(tasks[name], completed=done, count=count)

        yield tick


# Progress of long work and estimates of the rest, in lines: for a pipe, on which no bar can be
# drawn.


EVERY_S = 10.0
"""Seconds without a line after which one comes: often enough for a person to see that it goes
on, and 360 lines in an hour's log."""
_GLANCE_S = 1.0
"""Seconds between two checks whether a line is due."""


def tell_time(elapsed_s: float, done: int, total: int | None) -> str:
    """Describe the elapsed time of a part and, from its progress, an estimate of the rest.

    Args:
        done: items done of the part's ``total``; ``None`` where the total is unknown.

    >>> tell_time(12.0, 3, 9), tell_time(12.0, 0, 9), tell_time(12.0, 9, 9)
    ('12 s so far, about 24 s left', '12 s so far', '12 s')
    """
    from simulator.base.formats import seconds_text

    past = seconds_text(float(round(elapsed_s)))
    if total is not None and done >= total:
        return past
    if not total or not done:
        return f"{past} so far"
    left = seconds_text(float(round(elapsed_s * (total - done) / done)))
    return f"{past} so far, about {left} left"


class Lines:
    """Printer of :class:`~simulator.base.progress.Progress` that announces each part, and its
    progress when nothing was printed for ten seconds.
    """

    def __init__(
        self,
        unit: str,
        waiting: str,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without a line said.

        Args:
            unit: what is counted, in the plural.
            waiting: the part that lasts until the first name comes.
            say: prints a line.
            clock: seconds, from any beginning.
        """
        self._unit, self._say, self._clock = unit, say, clock
        self._begun = {waiting: clock()}
        self._now: tuple[str, int, int | None] = (waiting, 0, None)
        self._best = ""
        self._said_s = clock()

    def __call__(self, name: str, done: int, total: int | None, best: str = "", /) -> None:
        name, best = one_line(name), one_line(best)
        is_new = name not in self._begun
        self._begun.setdefault(name, self._clock())
        self._now = name, done, total
        if is_new and total is not None:
            self._print(f"{name}: {total:,} {self._unit}".rstrip())
        if best and best != self._best:
            self._best = best
            self._print(f"best so far: {best}")

    def say_if_due(self) -> None:
        """Print the progress of the part, unless a line came a short while ago."""
        if self._clock() - self._said_s < EVERY_S:
            return
        name, done, total = self._now
        count = f"{done:,} of {total:,} {self._unit}".rstrip() + ", " if total else ""
        self._print(f"{name}: {count}{tell_time(self._clock() - self._begun[name], done, total)}")

    def _print(self, line: str) -> None:
        self._said_s = self._clock()
        self._say(line)


@contextmanager
def keep_saying(lines: Lines) -> Iterator[None]:
    """Print lines when they are due, however long the work goes without a word."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_GLANCE_S):
            lines.say_if_due()

    thread = threading.Thread(target=look, name="says progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
