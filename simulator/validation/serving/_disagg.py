"""Disaggregated points: one pool computes prompts, the other decodes, and so many requests go round in both.

The pools' step times are those of their own plans. How requests spread over the two follows from the loop being closed (Little's law):
of ``c`` requests those that do not decode wait for, or are in, the prefill pool. Time in it is that of a queue with equal service times
and random arrivals (M/D/c, Cosmetatos' approximation) until the pool is full; then what is left of ``c`` waits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.fast import LOG_COLUMNS, price_step
from simulator.engine.limits import make_limits, scaled_blocks
from simulator.engine.replica import Replica
from simulator.engine.state import start_requests
from simulator.engine.table import StepTable
from simulator.plan import Plan
from simulator.traces import RequestTrace
from simulator.validation.serving._load import ROUNDS, SHORTEST, Latencies
from simulator.validation.serving._points import Point, Pool

_TRANSFER_S = 0.15
"""To hand a prompt's keys and values over, beyond their bytes: two more hops of the request, and one step that it just misses."""
_UNEVEN = 2.2
"""Of a prefill pool's time over what its steps take when full: prompts come in bunches, ranks wait for the longest one, and blocks are
held until they have been handed over. Fitted, likewise, on 99 points whose numbers of workers are known."""
_MAYBE_DRAFTS = 1.3
"""TensorRT-LLM's dated lists hold runs with and without speculative decoding, which do not say so: between the two."""
TTFT_BAND, TPOT_BAND = (0.52, 5.8), (0.61, 1.33)
"""10th and 90th percentile of measured over predicted on 509 points, most of which do not say how many workers there were."""
_BUSIEST, _MOST_WORKERS = 0.8, 8
_MANY = 512
"""Requests in flight from which decode workers with routed experts are taken to have attention data parallelism."""


def assumed_pool(point: Point) -> Pool:
    """The decode pool where the table does not say how many workers it has.

    What InferenceX's configurations of known size have in common: six workers of up to 8 GPUs to one that computes prompts, three where
    prompts are much longer than outputs, two where a worker spans nodes; attention data parallelism under heavy load.
    """
    pool = point.decode
    workers = 2 if pool.num_ranks > 8 else 6 if point.num_input <= 2 * point.num_output else 3
    if point.concurrency < _MANY or pool.attention_dp > 1 or pool.ep == 1:
        return pool._replace(workers=min(workers, point.concurrency))
    return Pool(1, pool.tp, pool.tp, max(1, workers // 2), pool.batch)


class Half(NamedTuple):
    """One pool, ready to be priced."""

    plan: Plan
    table: StepTable
    pool: Pool

    def step_s(self, per_rank: int, new: int, context: int) -> float:
        """Seconds of a step in which every data-parallel rank computes ``new`` tokens of ``per_rank`` sequences with ``context``."""
        dp = self.plan.layout.attention_dp
        count = per_rank * dp
        trace = RequestTrace(np.zeros(count), np.full(count, context + new - (context > 0)), np.full(count, 2), "", False)
        requests = start_requests(trace, with_prefixes=False)
        limits = make_limits(self.plan, trace)._replace(max_sequences=per_rank)
        replica = Replica(requests, limits, dp, scaled_blocks(self.plan, limits), 0)
        replica.ranks.running[:] = np.arange(count).reshape(per_rank, dp).T
        replica.ranks.num_running[:] = per_rank
        replica.ranks.chunk[:] = new
        requests.computed[:] = context
        requests.generated[:] = int(context > 0)
        return float(price_step(requests, replica.ranks, self.table, np.zeros(len(LOG_COLUMNS))))


def measure_pools(point: Point, prefill: Half, decode: Half) -> Latencies:
    """TTFT and TPOT of a disaggregated point. Where the table does not say otherwise, as many workers compute prompts as keep up."""
    share = (1 + SHORTEST) / 2 if point.is_ranged else 1.0
    num_input, num_output = max(1, round(point.num_input * share)), max(2, round(point.num_output * share))
    decoding = _Decoding.of(decode, num_input, num_output, point.concurrency)
    workers = prefill.pool.workers
    if not point.says_workers:
        wanted = point.concurrency / (decoding.token_s(point.concurrency) * num_output)
        workers = min(_MOST_WORKERS, max(1, math.ceil(wanted / (_BUSIEST * _Queue.of(prefill, num_input, 1).most_per_s))))
    queue = _Queue.of(prefill, num_input, workers)

    low, high = 0.0, queue.most_per_s * (1 - 1e-9)  # prompts a second, such that all requests are somewhere (Little's law)
    for _ in range(40):
        rate = (low + high) / 2
        ttft_s = queue.ttft_s(rate)
        token_s = decoding.token_s(point.concurrency - rate * ttft_s)
        is_more = rate * (ttft_s + token_s * (num_output - 1)) > point.concurrency
        low, high = (low, rate) if is_more else (rate, high)
    steady_s = max(ttft_s, point.concurrency / rate - token_s * (num_output - 1))
    crowd_s = queue.crowd_s(point.concurrency)  # all come at once at the beginning
    if not point.says_workers and point.is_dated and point.engine == "trtllm":
        token_s /= _MAYBE_DRAFTS
    return Latencies(steady_s + max(0.0, crowd_s - steady_s) / ROUNDS, token_s)


class _Decoding(NamedTuple):
    """The decode pool: seconds of a step by sequences of a data-parallel rank."""

    ranks: int
    counts: NDArray[np.int64]
    steps_s: NDArray[np.float64]

    @classmethod
    def of(cls, half: Half, num_input: int, num_output: int, concurrency: int) -> _Decoding:
        ranks = half.pool.workers * half.pool.attention_dp
        capacity = half.plan.capacity
        room = max(1, capacity.num_blocks // capacity.blocks_for(num_input + num_output))
        largest = max(1, min(room, math.ceil(concurrency / ranks)))
        counts = np.unique(np.rint(np.geomspace(1, largest, 12)).astype(np.int64))
        context = num_input + num_output // 2
        return cls(ranks, counts, np.array([half.step_s(int(count), 1, context) for count in counts]))

    def token_s(self, decoding: float) -> float:
        return float(np.interp(decoding / self.ranks, self.counts, self.steps_s))


class _Queue(NamedTuple):
    """The prefill pool: as many servers as data-parallel ranks, each with one prompt, or as many as its steps hold."""

    servers: int
    alone_s: float
    most_per_s: float
    way_s: float

    @classmethod
    def of(cls, half: Half, num_input: int, workers: int) -> _Queue:
        servers = workers * half.pool.attention_dp
        budget = half.plan.rules.token_budget
        together = max(1, budget // num_input)
        alone_s = half.step_s(1, min(num_input, budget), 0) * math.ceil(num_input / budget)
        full_s = half.step_s(together, num_input, 0) / together if together > 1 else alone_s
        way_s = half.plan.calibration.engine.first_token_s + _TRANSFER_S + _transfer_s(half, num_input)
        return cls(servers, alone_s, servers / min(alone_s, full_s), way_s)

    def ttft_s(self, rate: float) -> float:
        busy = rate / self.most_per_s
        wait = busy ** (math.sqrt(2 * (self.servers + 1)) - 1) / (self.servers * (1 - busy)) * self.alone_s / 2
        return float(self.way_s + (self.alone_s + wait) * _UNEVEN)

    def crowd_s(self, concurrency: int) -> float:
        return self.way_s + (self.alone_s + concurrency / self.most_per_s / 2) * _UNEVEN


def _transfer_s(prefill: Half, num_input: int) -> float:
    """Keys and values of a prompt over each GPU's own network port."""
    cluster = prefill.plan.cluster
    wire = cluster.scale_out or cluster.scale_up
    return prefill.plan.capacity.cache.bytes_for(num_input) / wire.bytes_per_s
