"""What happens between a prefill pool and a decode pool (decision 18): a cache is sent when it is
computed and a rank of the decode pool has blocks for it, and kept until it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.deployment.plan import DeploymentPlan
from tests.reference.events import Events, Kind
from tests.reference.pool import Pool
from tests.reference.rank import Rank
from tests.reference.requests import Request, Stage
from tests.reference.wires import Wires


class HandOver:
    """Two pools and the links between them. A request is one of each pool."""

    def __init__(self, plan: DeploymentPlan, pools: Sequence[Pool], events: Events) -> None:
        assert plan.transfer is not None
        self._prompts, self._decodes = pools
        self._transfer, self._events = plan.transfer, events
        senders = self._prompts.plan.placement.layout.attention_dp
        self._wires = Wires(plan.transfer, senders, plan.serving.replicas * plan.transfer.decode_dp)

    def _goes_on(self, prompt: Request) -> bool:
        """Whether a request decodes after its prompt, or has its last token computed again."""
        num_output = self._decodes.requests[prompt.number].num_output
        return num_output > 1 or self._transfer.recomputes_last

    def asks_first(self, prompt: Request) -> bool:
        """Whether a prompt is computed when there is room for its cache, and not before."""
        return self._transfer.reserves_first and self._goes_on(prompt)

    def expect_cache(self, prompt: Request) -> None:
        """Let a request want blocks for the cache of its prompt, which comes with the first output
        token where the last of the prompt is not computed again.
        """
        request = self._decodes.requests[prompt.number]
        again = int(self._transfer.recomputes_last)
        request.stage = Stage.IN_LINE
        request.transferred, request.generated = request.num_input - again, 1 - again

    def leave(self, prompt: Request, now_s: float) -> bool:
        """Let a prompt that is computed go on. Returns whether its cache is needed any longer."""
        request = self._decodes.requests[prompt.number]
        if request.lost_s is not None or not self._goes_on(prompt):
            return False
        if request.stage is Stage.RESERVED:
            self._send(prompt, now_s)
        elif request.stage is Stage.HERE:
            self.expect_cache(prompt)
            ready_s = now_s + self._transfer.handshake_s
            self._events.add(ready_s, Kind.GOES_ON, prompt.number)
        return True

    def use_room(self, request: Request, now_s: float) -> None:
        """There is room for a cache, which is sent if it is computed; else its prompt may come."""
        prompt = self._prompts.requests[request.number]
        if prompt.finish_s is not None:
            self._send(prompt, now_s)
        elif prompt.replica is None:
            self._events.add(now_s, Kind.COMES_LATER, prompt.number)

    def _send(self, prompt: Request, now_s: float) -> None:
        request = self._decodes.requests[prompt.number]
        request.arrival_s = self._wires.send(prompt, now_s)
        self._events.add(max(now_s, request.arrival_s), Kind.CACHE_ARRIVES, prompt.number)

    def take_in(self, request: Request) -> None:
        """A cache has come: its request waits for nothing but tokens and a place."""
        rank = self._find_rank(request)
        request.stage = Stage.HERE
        rank.reserved.remove(request)
        rank.ready.append(request)

    def let_go(self, prompt: Request) -> bool:
        """Give the blocks of a prompt back. Returns whether it had any."""
        if not prompt.blocks and not prompt.fixed_blocks and not prompt.shared:
            return False
        assert prompt.replica is not None
        rank = self._prompts.replicas[prompt.replica].ranks[prompt.rank]
        rank.cache.release(prompt)
        rank.is_full = False
        return True

    def give_up(self, prompt: Request, now_s: float) -> int | None:
        """A prompt is lost, so nobody need wait for its cache. Returns a replica that has room by
        that.
        """
        request = self._decodes.requests[prompt.number]
        request.lost_s = now_s
        return self._withdraw(request)

    def ask_again(self, prompt: Request) -> int | None:
        """A prompt is to be computed again, and asks for room once more when it is. Returns a
        replica that has room by that.
        """
        request = self._decodes.requests[prompt.number]
        goes_on = (Kind.GOES_ON, 0, prompt.number)
        if self._events.call_off(lambda event: event[1:] == goes_on):
            request.stage = Stage.HERE
            return None
        return self._withdraw(request)

    def _withdraw(self, request: Request) -> int | None:
        if request.replica is None:
            return None
        rank = self._find_rank(request)
        coming = self._decodes.replicas[request.replica].coming
        for queue in (rank.line, coming):
            if request in queue:
                queue.remove(request)
                request.stage = Stage.HERE
        if request not in rank.reserved:
            return None
        rank.reserved.remove(request)
        rank.cache.release(request)
        rank.is_full = False
        request.stage = Stage.HERE
        return request.replica

    def _find_rank(self, request: Request) -> Rank:
        assert request.replica is not None
        return self._decodes.replicas[request.replica].ranks[request.rank]

    def count_receivers(self) -> None:
        """Replicas of the decode pool have stopped or started."""
        living = len(self._decodes.living)
        self._wires.num_receivers = max(1, living * self._transfer.decode_dp)
