"""No speculation: every step finds one token of a sequence."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.policies.speculation import Drafts


class NoDrafts(Frozen):
    """No drafts: every decode makes one token."""

    def drafts(self) -> Drafts:
        return Drafts()
