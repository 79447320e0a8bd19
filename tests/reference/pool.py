"""Equal replicas behind one load balancer, and the requests as far as they are served there."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count

import numpy as np

from simulator.deployment.plan import DeploymentPlan
from simulator.policies.balancing import Rule
from simulator.workload.traces import RequestTrace
from tests.reference.replica import Replica
from tests.reference.requests import Request
from tests.reference.settings import Settings, read_settings


class Pool:
    """Replicas, of which some may have stopped."""

    def __init__(
        self, name: str, plan: DeploymentPlan, trace: RequestTrace, settings: Settings, stream: str
    ) -> None:
        """Nothing has come.

        Args:
            stream: names the balancer's random numbers.
        """
        self.name, self.plan, self.settings = name, plan, settings
        layout = plan.placement.layout
        longest = min(
            plan.placement.model.max_context_tokens or math.inf, plan.serving.capacity.tokens
        )
        self.requests = read_requests(trace, longest - len(settings.accepted))
        self.replicas = [
            Replica(settings, layout.attention_dp, layout.pp) for _ in range(plan.serving.replicas)
        ]
        for request in self.requests if settings.rules.knows_ends or name == "prefill" else []:
            request.known_end = request.most
        self._stream, self._num_starts = stream, 0
        self.start_balancing()

    @property
    def living(self) -> list[int]:
        """Replicas that serve."""
        return [number for number, one in enumerate(self.replicas) if not one.num_stops]

    def start_balancing(self) -> None:
        """Balance over the replicas that serve now, without memory of what was before."""
        which = (self._num_starts,) if self._num_starts else ()
        self._num_starts += 1
        rng, living = self.plan.placement.rng(self._stream, *which), self.living
        self._turns: list[int] = []
        self._sent = count()
        if not living:
            return
        rule = self.plan.serving.balancing.prepare(len(living), rng)
        assert isinstance(rule, Rule), "a balancer in Python is asked by the engine alone"
        for number in living:
            self.replicas[number].rule = rule
        if rule.turns is not None:
            turns = np.asarray(living)[rule.turns(len(self.requests))]
            self._turns = turns.tolist()

    def send(self, request: Request, now_s: float) -> Replica | None:
        """Give a request to a replica: the next one in turn, or the first with the least load."""
        living = self.living
        if not living:
            return None
        chosen = (
            self._turns[next(self._sent) % len(self._turns)]
            if self._turns
            else min(living, key=lambda number: self.replicas[number].measure_load(request))
        )
        request.replica, request.joined_s = chosen, now_s
        request.key = now_s
        self.replicas[chosen].coming.append(request)
        return self.replicas[chosen]


def read_requests(trace: RequestTrace, longest: float) -> list[Request]:
    """The requests of a trace, which reckon with no more than ``longest`` tokens each."""
    has_prefixes = trace.prefix_block_tokens > 0
    starts = trace.prefix_starts.tolist() if has_prefixes else [0] * (trace.num_requests + 1)
    ids = trace.prefix_ids.tolist()
    most = trace.attributes.get("max_tokens", trace.num_output)
    columns = trace.num_input, trace.num_output, most
    lengths = zip(*(column.tolist() for column in columns), strict=True)
    priorities = trace.attributes.get("priority", np.zeros(trace.num_requests)).tolist()
    return [
        Request(
            number,
            num_input,
            num_output,
            max(num_output, min(most, int(longest) - num_input)),
            priorities[number],
            tuple(ids[starts[number] : starts[number + 1]]),
        )
        for number, (num_input, num_output, most) in enumerate(lengths)
    ]


def start_pools(plan: DeploymentPlan, trace: RequestTrace) -> list[Pool]:
    """The pool that requests come to, and the one that decodes if it is another.

    To that one come decodes only, and what is preempted is computed again there, beside them. In
    the other a request has one output token.
    """
    settings = read_settings(plan, trace)
    if plan.prefill is None:
        return [Pool("both", plan, trace, settings, "balancing")]
    own = {name: of for name, of in trace.attributes.items() if name != "max_tokens"}
    prompts = replace(trace, num_output=np.ones_like(trace.num_output), attributes=own)
    keeping = replace(read_settings(plan.prefill, prompts), keeps_caches=True)
    rules = settings.rules._replace(mixes_phases=True, balance_steps=0, wait_steps=0)
    decoding = replace(settings, rules=rules, prefix_tokens=0, tiers=(), fills_apart=False)
    return [
        Pool("prefill", plan.prefill, prompts, keeping, "balancing"),
        Pool("decode", plan, trace, decoding, "balancing decodes"),
    ]
