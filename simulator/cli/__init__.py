"""The ``moesim`` command. All printing is in this package: results on standard output, everything
else on standard error.

A command is a function of one of the modules, which are registered here; the lab's are found in
its folder. Slow packages are imported inside the functions.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from typing import Annotated, Any, NoReturn

import typer
from typer.models import CommandInfo, TyperInfo

from simulator import __version__
from simulator.base.caches import tell_compiling
from simulator.base.errors import INTERRUPTED, LostError, UserError
from simulator.base.machine import look_rarely
from simulator.base.plugins import available, load_kind
from simulator.base.text import one_line
from simulator.base.trust import forget_current_folder
from simulator.cli import (
    console,
    describe,
    execute,
    explore,
    plan,
    run,
    sparsity,
    trace,
)
from simulator.runtime.ray_files import remove_dead_clusters
from simulator.runtime.stopping import find_interrupts, stop_on_signal

_OBSTACLES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors of a folder that may not be read or written, or is full."""

app = typer.Typer(
    name="moesim",
    help=(
        "Replay real traffic on mixture-of-experts and dense deployments, "
        "and see which serves it better and why."
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; exit status 2 for wrong input, 1 for a defect of ours or a cluster that was
    lost, 130 for Ctrl-C or SIGTERM, or the command's own.
    """
    try:
        with stop_on_signal():
            status = _run()
        sys.stdout.flush()
        if status:
            sys.exit(status)
    except UserError as error:
        _fail(str(error))
    except LostError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort, console.StoppedError) as stopped:
        _stop(
            str(stopped)
            if isinstance(stopped, console.StoppedError)
            else "stopped; nothing was written"
        )
    except BrokenPipeError:  # the reader has seen enough (moesim list | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):
            _fail_usage(error)
        if any(find_interrupts(error)):
            _stop("stopped; nothing was written")
        if isinstance(error, OSError) and (obstacle := _find_obstacle(error)):
            _fail(obstacle)
        console.err.say(traceback.format_exc())
        console.err.say(
            f"\nThis is a defect of moesim {__version__}, not of your input. "
            "Please report it with the lines above and the scenario."
        )
        sys.exit(1)


def _run() -> int | None:
    look_rarely()
    forget_current_folder()
    warnings.showwarning = console.show_warning
    tell_compiling(console.show_compiling)
    remove_dead_clusters()
    status: int | None = app(standalone_mode=False)
    if status == INTERRUPTED:  # typer returns the status of a Ctrl-C instead of raising it
        raise KeyboardInterrupt
    return status


def _find_obstacle(error: OSError) -> str | None:
    """Describe what of the user's folders led to an error, if anything did."""
    try:
        os.getcwd()
    except OSError:
        return "the current folder was removed, or cannot be read: change to another (cd)"
    if error.filename is None:  # what was written to, or a process: only a full disk is the user's
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return "no space left to write to; make room, or write elsewhere" if is_full else None
    return f"{error.filename}: {error.strerror}" if error.errno in _OBSTACLES else None


def _stop(message: str) -> NoReturn:
    console.err.say(message)
    if "ray" in sys.modules:
        # Everything is stopped; threads of libraries that die late have crashed the
        # interpreter's own end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)


def _fail(message: str, status: int = 2) -> NoReturn:
    console.err.say(f"error: {one_line(message)}", "red")
    sys.exit(status)


def _fail_usage(error: Any) -> NoReturn:
    """A usage error of the command line itself, in one line; without any argument the help has been
    printed already.
    """
    message = error.format_message()
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        sys.exit(error.exit_code)
    command = error.ctx.command_path if getattr(error, "ctx", None) else "moesim"
    _fail(f"{message[0].lower()}{message[1:].rstrip('.')}; see '{command} --help'")


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"moesim {__version__}")
        raise typer.Exit


_WELCOME = """\
moesim replays real request traffic on mixture-of-experts and dense deployments, and says which \
serves it better, at what cost, and why.
A mixture of experts (MoE) is a model each of whose tokens uses a few of many expert networks: it \
computes like a small model and fills the memory of a large one.

Three commands to try:
  moesim run mixtral_vs_llama2    Mixtral-8x7B against Llama-2-70B on eight H100, with a report
  moesim plan azure_conv          the cheapest deployment that meets latency targets
  moesim list models              what ships; moesim --help lists all commands"""


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        console.option("Print the version.", flag="--version", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Replay real traffic on mixture-of-experts and dense deployments, and see which serves it
    better and why.
    """
    if context.invoked_subcommand is None:
        console.out.print(_WELCOME)


for _kind in available("lab.cli"):
    load_kind("lab.cli", _kind).register(app)
app.command()(run.run)
app.command()(plan.plan)
app.command()(explore.explore)
app.command()(execute.execute)
app.command()(run.report)
app.command()(run.diff)
app.command()(sparsity.sparsity)
app.command("list")(describe.list_)
app.command()(describe.supports)
app.command()(describe.new)
app.command()(describe.check)
app.command()(describe.schema)
app.add_typer(trace.app, name="trace")
app.add_typer(describe.cache, name="cache")

_ORDER = (
    "run",
    "plan",
    "explore",
    "execute",
    "claims",
    "calibrate",
    "report",
    "diff",
    "sparsity",
    "validate",
    "list",
    "supports",
)
"""Commands that the help lists first, in this order."""


def _place(command: CommandInfo | TyperInfo) -> int:
    name = command.name or getattr(command.callback, "__name__", "")
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


app.registered_commands.sort(key=_place)
app.registered_groups.sort(key=_place)
