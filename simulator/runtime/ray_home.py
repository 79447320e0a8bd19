"""The command's own machine, as seen by the processes that Ray starts for it on this and others."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import simulator
from simulator.base.data import shipped_folder
from simulator.base.errors import UserError
from simulator.base.home import Far, join_home
from simulator.base.partial import hold_folder, take_abandoned
from simulator.base.trust import allow_as_sender, allowed_folder
from simulator.runtime.ray_files import remove

_PREFIX = "moesim-files-"
_AT_ONCE = 16
"""Processes that are answered at once; most of an answer is waiting for a disk."""


def ship_code() -> dict[str, object]:
    """Make the runtime environment of processes on a cluster of the user's: this moesim, whatever
    is installed there. Its data stay here and are fetched as the user's own files are.
    """
    package = str(Path(simulator.__file__).resolve().parent)
    return {"py_modules": [package], "excludes": ["_data", "__pycache__"]}


class _Caller:
    """Body of a process on the command's machine that calls functions for the others."""

    def __init__(self, folder: Path, shipped: Path) -> None:
        self._join = partial(join_home, folder, shipped, None)

    def call(self, function: Callable[[], Any]) -> Any:
        self._join()  # here, where who asks is told of a folder that is missing
        return function()


@dataclass(frozen=True)
class Sender:
    """Command that sends work to the processes that Ray starts, as far as they must know it."""

    allowed: Path | None
    """Folder whose code may run."""
    home: tuple[str, Path, Path, Any] | None = None
    """On a cluster of the user's: the command's node, current folder and data that ship, and a
    process there that reads files for others."""

    def greet(self) -> None:
        """Prepare the process that this is called in for the sender's work."""
        if self.home is not None:
            node, folder, shipped, caller = self.home
            is_far = ray.get_runtime_context().get_node_id() != node
            join_home(folder, shipped, _open_far(caller) if is_far else None)
        allow_as_sender(self.allowed)


def make_sender(*, is_joined: bool) -> Sender:
    """Describe this process to those that it starts.

    Args:
        is_joined: whether they may be on other machines.
    """
    if not is_joined:
        return Sender(allowed_folder())
    node = ray.get_runtime_context().get_node_id()
    places = Path.cwd(), shipped_folder().resolve()
    caller = (
        ray.remote(_Caller)
        .options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(*places)
    )
    return Sender(allowed_folder(), (node, *places, caller))


def _open_far(caller: Any) -> Far:
    """Open a folder for files of the command's machine, and remove those of dead processes."""
    place = Path(tempfile.gettempdir()).resolve()
    with take_abandoned(_PREFIX, place) as folders:
        for folder in folders:
            remove(folder)
    # Held until this process ends, which Ray does without notice.
    root = _held.enter_context(hold_folder(_PREFIX, place))

    def ask(function: Callable[[], Any]) -> Any:
        try:
            return ray.get(caller.call.remote(function))
        except RayTaskError as error:
            raise error.cause from None

    try:
        ask(Path.cwd)
    except OSError as error:
        raise UserError(
            f"--address: Ray's processes on the command's own node do not see its files: {error}"
        ) from None
    return Far(root, ask, {})


_held = contextlib.ExitStack()
