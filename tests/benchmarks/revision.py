"""An earlier revision of the simulator, which serves cases in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.clock import ROOT
from tests.benchmarks.deployments import Case


class RefusedError(Exception):
    """The revision cannot serve a case, or is not there; the message says why."""


class Revision:
    """A revision that waits for cases."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self._process = process

    def serve(self, case: Case) -> float:
        """CPU seconds of its engine; the first time it is asked, it prepares the case.

        Raises:
            RefusedError: if it cannot.
        """
        asked, told = self._process.stdin, self._process.stdout
        if asked is None or told is None:
            raise RefusedError("its process has no pipes")
        asked.write(json.dumps(dataclasses.asdict(case)) + "\n")
        asked.flush()
        line = told.readline()
        if not line:
            raise RefusedError("its process has ended")
        found = json.loads(line)
        if "refusal" in found:
            raise RefusedError(found["refusal"])
        return float(found["cpu_s"])


@contextmanager
def start_revision(name: str) -> Iterator[Revision]:
    """A checkout of the revision and a process that serves with it, both gone at the end.

    Raises:
        RefusedError: if the repository has no such revision.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "base"
        _git(name, "worktree", "add", "--detach", str(checkout), name)
        try:
            with serve_from(checkout, name, NUMBA_CACHE_DIR=f"{folder}/compiled") as revision:
                yield revision
        finally:
            _git(name, "worktree", "remove", "--force", str(checkout))


@contextmanager
def serve_from(checkout: Path, name: str, **environment: str) -> Iterator[Revision]:
    """A process that serves with the simulator in a folder, and ends when nothing more is asked."""
    with subprocess.Popen(
        [sys.executable, ROOT / "tests/benchmarks/serve_earlier.py"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Revision(name, process)


def _git(name: str, *arguments: str) -> None:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise RefusedError(f"revision {name} is not in this clone")
