"""Rebalancing at regular times, as engines' expert balancers do it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import field_validator, model_validator

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, Policy
from simulator.base.kinds import PolicyOf
from simulator.base.plugins import build, policy_class
from simulator.base.quantities import Duration, Factor, Seconds, Steps
from simulator.policies.placement import Placed, PlacementPolicy
from simulator.policies.rebalancing import HOST_S_PER_LAYER, ExpertLoad
from simulator.policies.rebalancing._moves import (
    EverySeconds,
    EverySteps,
    LayersPerChunk,
    begins_window,
    check_chunks,
    check_interval,
    keep_where_alike,
    list_intervals,
)


class Periodic(Frozen):
    """Experts are placed by their load in a window that ends when they are looked at, where that
    makes the load of ranks more even.

    vLLM looks every 3,000 steps at the last 1,000 (``--eplb-config``), SGLang every 1,000 steps
    (``--eplb-rebalance-num-iterations``). Moves that keep experts where copies of them were carry
    fewer bytes and lead to the same loads.
    """

    every_s: EverySeconds = 60.0
    """Seconds from one look to the next."""
    window_s: Duration | None = None
    """Seconds before a look whose load counts; absent = all since the last look."""
    every_steps: EverySteps = None
    """Steps from one look to the next of the replica that takes most, as engines count them; absent
    = ``every_s`` counts."""
    window_steps: Steps | None = None
    """Steps before a look whose load counts; absent = all since the last look."""
    placement: Annotated[Policy, PolicyOf("placement")] = {"kind": "eplb"}
    """Placement policy; of those with slots for copies, these are as many as the
    deployment has."""
    threshold: Factor = 1.0
    """Ratio of the busiest rank's load to the mean rank's in the window, as a mean over layers, at
    and above which experts are moved."""
    least_gain: Factor = 0.02
    """Least decrease of that ratio that experts are moved for."""
    host_s_per_layer: Seconds = HOST_S_PER_LAYER
    """Seconds of the engine's own work for each layer whose experts move: plans, indices and
    launches."""
    asynchronous: bool = False
    """Whether steps go on while weights travel, as with vLLM's ``use_async``; otherwise the replica
    waits."""
    layers_per_chunk: LayersPerChunk = None
    """Layers whose experts move at a time, with a step between (SGLang's
    ``--eplb-rebalance-layers-per-chunk``); absent = all at once."""

    @model_validator(mode="after")
    def _check_window(self) -> Periodic:
        if self.window_s is not None and self.window_s > self.every_s:
            raise ValueError(
                f"window_s ({self.window_s:g}) must be at most every_s ({self.every_s:g})"
            )
        if self.window_steps is not None and self.window_steps > (self.every_steps or 0):
            raise ValueError(
                f"window_steps ({self.window_steps}) must be at most every_steps "
                f"({self.every_steps or 'absent'})"
            )
        check_interval(self)
        check_chunks(self)
        return self

    @field_validator("placement")
    @classmethod
    def _check_placement(cls, table: Policy) -> Policy:
        try:
            build("placement", table, "placement")
        except UserError as error:
            raise ValueError(str(error)) from None
        return table

    def looks(self) -> Iterator[float]:
        if self.every_steps is not None:
            return list_intervals(self.every_steps, self.window_steps or self.every_steps)
        return list_intervals(self.every_s, self.window_s or self.every_s)

    def decide(self, load: ExpertLoad, rng: np.random.Generator) -> Placed | None:
        at, every = load.at_s, self.every_s
        if self.every_steps is not None:
            at, every = load.num_steps, self.every_steps
        now = load.measure_imbalance(load.placed)
        if begins_window(at, every) or not load.num_tokens or now < self.threshold:
            return None
        table = dict(self.placement)
        num_slots = load.placed.expert_LP.shape[1]
        fields = policy_class("placement", table["kind"], "rebalancing placement").model_fields
        if "num_slots" in fields and num_slots > load.load_LE.shape[1]:
            table["num_slots"] = num_slots
        elif table == {"kind": "eplb"} and num_slots % load.placed.num_ranks:
            table = {"kind": "greedy"}  # without copies they do the same
        policy: PlacementPolicy = build("placement", table, "rebalancing placement")
        placed = policy.place(load.load_LE, load.placed.num_ranks, rng)
        if now - load.measure_imbalance(placed) < self.least_gain:
            return None
        return keep_where_alike(load.placed, placed)
