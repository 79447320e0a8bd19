"""Prefill and decode in pools of their own: prompts here, their KV caches over the wires, tokens
there.

The first token is shown by the decode pool: the prompt's own when it takes the request in, or the
one of its first step for the request, where it computes the last token of the prompt again. Where
it does not, a request of one token ends with its prompt.

A prefill replica lets a prompt's blocks go when its last chunk is done, as if they waited elsewhere
for the wires; it is not held up by a decode pool that is full (its requests queue there). Prefixes
are shared in the prefill pool only: a cache travels whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import simpy
from simpy.events import ProcessGenerator

from simulator.base.progress import CountDone
from simulator.cost.transfer import Transfer
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.limits import make_limits
from simulator.engine.state import Floats, Ints
from simulator.engine.table import StepTable
from simulator.workload.traces import RequestTrace
from tests.reference.pool import Pool, send, sent_s
from tests.reference.replica import ByTable, Execute


class Pools:
    """One run of a plan with a prefill pool."""

    def __init__(self, plan: DeploymentPlan, trace: RequestTrace, progress: CountDone) -> None:
        if plan.prefill is None or plan.transfer is None:
            raise ValueError(f"{plan.name} has no prefill pool")
        self.prefill = Pool(plan.prefill, replace(trace, num_output=np.ones_like(trace.num_output)))
        # Nothing but decodes comes; what is preempted is computed again beside them.
        limits = make_limits(plan, trace)
        rules = limits.rules._replace(mixes_phases=True, balance_steps=0, wait_steps=0)
        limits = limits._replace(rules=rules, prefix_tokens=0, prefix_blocks=0)
        self.decode = Pool(plan, trace, limits, stream="balancing decodes")
        self.concurrency = trace.concurrency
        self.progress = progress
        self.trace = trace
        self.way_s = plan.prefill.calibration.engine.first_token_s
        self.prefill.requests.arrival_s[:] += self.way_s
        self._wires = _Queues(
            plan.transfer, plan.prefill.replicas, plan.prefill.layout.attention_dp, plan.replicas
        )
        self._recomputes_last = plan.transfer.recomputes_last
        self._goes_on = (trace.num_output > 1) | self._recomputes_last

    def tick(self) -> None:
        self.progress(
            self.decode.num_finished
            + int((~self._goes_on & ~np.isnan(self.prefill.requests.finish_s)).sum())
        )

    def by_table(self, prefill: StepTable, decode: StepTable) -> None:
        """At the ``step`` fidelity. An open loop's pools run one after the other, since nothing
        comes back from the second.
        """
        if self.concurrency is not None:
            self.in_simpy(ByTable(prefill), ByTable(decode))
            return
        count = len(self._goes_on)
        self.prefill.serve(prefill, range(count), lambda: None)
        for request in np.argsort(self.prefill.requests.first_s, kind="stable"):
            if self._goes_on[request]:
                self._arrive(int(request), self._wires.arrival_s(*self._sent(int(request))))
        arrival_s = self.decode.requests.arrival_s
        order = np.argsort(arrival_s, kind="stable")
        self.decode.serve(
            decode, [int(request) for request in order if self._goes_on[request]], self.tick
        )

    def in_simpy(self, prefill: Execute, decode: Execute) -> None:
        """Every step of both pools is an event."""
        env = simpy.Environment()
        freed = simpy.Container(env) if self.concurrency is not None else None

        def on_finish(count: int) -> None:
            if freed is not None and count:
                freed.put(count)
            self.tick()

        def on_prompts(done: Ints) -> None:
            for request in done:
                env.process(self._leave(env, int(request), on_finish))

        self.prefill.start(env, prefill, on_prompts)
        self.decode.start(env, decode, lambda done: on_finish(len(done)))
        env.process(send(env, self.prefill, self.concurrency, freed, self.way_s))
        env.run()

    def _leave(
        self, env: simpy.Environment, request: int, on_finish: Callable[[int], None]
    ) -> ProcessGenerator:
        """A prompt is computed: its cache goes where decoding goes on, or that was all."""
        if not self._goes_on[request]:
            on_finish(1)
            return
        arrival_s = self._wires.arrival_s(*self._sent(request))
        yield env.timeout(max(0.0, arrival_s - env.now))
        self._arrive(request, env.now)
        self.decode.hand_over(request)

    def _sent(self, request: int) -> tuple[int, int, int, float, float]:
        """Who sends what and when: replica, data-parallel rank, tokens, when computing began and
        when it ended.
        """
        own = self.prefill.requests
        return (
            int(self.prefill.replica_of[request]),
            int(own.dp_rank[request]),
            int(own.num_input[request]),
            float(own.scheduled_s[request]),
            float(own.first_s[request]),
        )

    def _arrive(self, request: int, arrival_s: float) -> None:
        """A cache is where decoding goes on: with the first token, or without the last place of the
        prompt.
        """
        requests = self.decode.requests
        requests.arrival_s[request] = arrival_s
        requests.brought[request] = requests.num_input[request] - self._recomputes_last
        requests.generated[request] = 0 if self._recomputes_last else 1

    def table(self) -> pd.DataFrame:
        """``REQUEST_COLUMNS`` but the deployment."""
        prompts, decodes, moved = self.prefill.requests, self.decode.requests, self._goes_on
        first_s = np.where(moved, decodes.first_s, prompts.first_s)
        transfer = self._wires.transfer
        num_bytes = [transfer.num_bytes(int(tokens)) for tokens in prompts.num_input]
        return pd.DataFrame(
            {
                "request": np.arange(len(moved)),
                "replica": np.where(moved, self.decode.replica_of, -1),
                "dp_rank": np.where(moved, decodes.dp_rank, -1),
                "arrival_s": sent_s(self.trace, prompts.arrival_s, self.way_s),
                "scheduled_s": prompts.scheduled_s,
                "first_token_s": first_s,
                "finish_s": np.where(moved, decodes.finish_s, first_s),
                "num_input": decodes.num_input,
                "num_output": decodes.num_output,
                "num_cached": prompts.cached,
                "num_preemptions": prompts.preemptions + decodes.preemptions,
                "prefill_replica": self.prefill.replica_of + len(self.decode.replicas),
                "transfer_s": np.where(moved, decodes.arrival_s - prompts.first_s, 0.0),
                "transfer_bytes": np.where(moved, num_bytes, 0.0),
            }
        )


class _Queues:
    """The wires of both pools: each sending rank sends one cache after another, and the receiving
    ranks share what comes.
    """

    def __init__(
        self, transfer: Transfer, num_prefill: int, prefill_dp: int, num_decode: int
    ) -> None:
        self.transfer = transfer
        self._free_s: Floats = np.zeros((num_prefill, prefill_dp))
        self._prefill_dp = prefill_dp
        self._received_s = 0.0
        self._receivers = num_decode * transfer.decode_dp

    def arrival_s(
        self, replica: int, dp_rank: int, num_tokens: int, began_s: float, ended_s: float
    ) -> float:
        """When a cache is there; asked in order of the prompts' ends."""
        wires, computing_s = self.transfer, ended_s - began_s + self.transfer.handshake_s
        send_s, receive_s = (
            wires.left(s(num_tokens), computing_s) for s in (wires.send_s, wires.receive_s)
        )
        sender = (
            dp_rank % self._prefill_dp
        )  # the GPUs of a pipeline hold the caches of all batches in flight
        start_s = max(ended_s + wires.handshake_s, float(self._free_s[replica, sender]))
        self._free_s[replica, sender] = start_s + send_s
        self._received_s = max(self._received_s, start_s) + receive_s / self._receivers
        return max(start_s + max(send_s, receive_s), self._received_s) + wires.latency_s
