"""Module search path of Ray's workers."""

from __future__ import annotations

import os
from pathlib import Path

from ray.job_config import JobConfig

import simulator
from simulator.base.trust import is_installed


class WithoutCurrentFolder(JobConfig):
    """Job whose workers search for modules where any Python process does.

    Ray itself would put the current folder and the script's in front of everything else, so that a
    stray ``numpy.py`` beside a scenario ran in every worker. Where moesim is not installed but
    found on the path of this process alone (``python -m simulator`` in a checkout), its own folder
    stands there, unless a runtime environment ships it.
    """

    def _serialize(self) -> bytes:
        self._py_driver_sys_path = [] if self.runtime_env else _folders()
        serialized: bytes = super()._serialize()
        return serialized


def _folders() -> list[str]:
    package = Path(simulator.__file__).resolve().parent
    paths = map(os.path.realpath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return [] if is_installed(package) or str(package.parent) in paths else [str(package.parent)]
