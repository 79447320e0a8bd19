"""What the figures of a plan's page have in common."""

from __future__ import annotations

from typing import ClassVar

from simulator.base.frozen import Frozen
from simulator.report.gallery import Width


class Wide(Frozen):
    """A figure as wide as its card."""

    width: ClassVar[Width] = "full"
