"""Choices that decide whether a serving engine starts."""

from __future__ import annotations

from typing import NamedTuple

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.deployment import DeploymentSpec
from simulator.config.host_memory import HostSpec
from simulator.config.model import ModelSpec
from simulator.policies.scheduling import Rules
from simulator.policies.speculation import Drafts
from simulator.work.layout import Layout
from simulator.work.memory import Precision


class Setup(NamedTuple):
    """A replica as its engine is started: model, GPU, split, number formats and batching."""

    spec: DeploymentSpec
    model: ModelSpec
    accelerator: AcceleratorSpec
    layout: Layout
    precision: Precision
    rules: Rules
    host: HostSpec | None = None
    """Machine around the GPU, where its memory is known."""
    drafts: Drafts = Drafts()
    """Drafts, whose module has weights and a cache too."""
