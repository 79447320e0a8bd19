"""What the figures of a plan's page have in common."""

from __future__ import annotations

from typing import ClassVar

from simulator.report.gallery import Width
from simulator.spec.base import Frozen


class Wide(Frozen):
    """A figure as wide as its card."""

    width: ClassVar[Width] = "full"
