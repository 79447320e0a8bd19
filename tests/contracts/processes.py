"""Commands in a process of their own, and copies of the project to add files to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]
UNFINISHED = shutil.ignore_patterns("*.tmp.*", "*.pyc.*")
"""Files that another worker is writing."""
_PROGRAM = """
import contextlib, io, json, sys
from simulator.cli import main

done = []
for words in json.load(sys.stdin):
    sys.argv, status = ["moesim", *words], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stopped:
            status = stopped.code or 0
    done.append((status, out.getvalue(), err.getvalue()))
json.dump(done, sys.stdout)
"""


class Done(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def answer(self):
        """What it printed as JSON."""
        assert self.status == 0, self.err
        return json.loads(self.out)


def moesim(cwd, *commands, path=PROJECT):
    """Run commands one after another in a folder, with the package that lies in ``path``.

    One new process runs them all, since importing takes longer than most of them.
    """
    process = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM],
        input=json.dumps(commands),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [Done(*one) for one in json.loads(process.stdout)]


def copy_project(folder):
    """Copy the package and its data, with what is compiled."""
    for name in ("simulator", "workloads", "cluster_configs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=UNFINISHED)
    return folder
