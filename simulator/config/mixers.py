"""Sequence mixers: the half of a layer that looks at other tokens (attention, linear attention,
state space).

What each says of itself is in :class:`~simulator.config.mixer_kind.MixerKind`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.config.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from simulator.config.recurrent import GatedDeltaNet, Mamba2

Mixer = Annotated[
    GroupedQueryAttention | LatentAttention | CompressedAttention | GatedDeltaNet | Mamba2,
    Field(discriminator="kind"),
]
"""Any of them, told apart by ``kind``."""
