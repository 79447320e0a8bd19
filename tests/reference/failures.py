"""Replicas that stop and start (decision 20): caches are lost, tokens that were sent are not, and
what a replica had is sent again when everything of that instant has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simulator.policies.failures import Change
from tests.reference.events import Events, Kind
from tests.reference.hand_over import HandOver
from tests.reference.pool import Pool
from tests.reference.requests import Request, Stage


class Failures:
    """What policies let happen, and what is to be sent again."""

    def __init__(
        self,
        policies: Sequence[Iterator[Change]],
        pools: Sequence[Pool],
        events: Events,
        handing: HandOver | None,
    ) -> None:
        self._pools, self._events, self._handing = pools, events, handing
        self._changes: list[tuple[Change, Iterator[Change]]] = []
        self._again: list[tuple[int, Request]] = []
        """Place of their pool, and requests that are about to be sent again."""
        self._is_told = False
        for policy in policies:
            self._follow(policy)

    def _follow(self, policy: Iterator[Change]) -> None:
        """Let the next change of a policy happen when it says."""
        change = next(policy, None)
        if change is not None:
            self._events.add(change.at_s, Kind.CHANGES, len(self._changes))
            self._changes.append((change, policy))

    def change(self, now_s: float, number: int) -> None:
        """Let one change happen."""
        change, policy = self._changes[number]
        [place] = [n for n, pool in enumerate(self._pools) if pool.name == change.pool]
        for replica in change.replicas:
            self._count_reason(place, replica, change.starts, now_s)
        self._pools[place].start_balancing()
        if self._handing:
            self._handing.count_receivers()
        if not self._is_told:
            self._is_told = True
            self._events.add(now_s, Kind.HAS_CHANGED, 0)
        self._follow(policy)

    def _count_reason(self, place: int, number: int, starts: bool, now_s: float) -> None:
        """There is one reason less, or one more, for a replica to serve nobody."""
        replica = self._pools[place].replicas[number]
        if starts:
            replica.num_stops = max(0, replica.num_stops - 1)
            return
        replica.num_stops += 1
        if replica.num_stops == 1:
            self._stop(place, number, now_s)

    def _stop(self, place: int, number: int, now_s: float) -> None:
        """A replica is gone, and what it had is to be sent again."""
        self._cut_step(place, number, now_s)
        pool, replica = self._pools[place], self._pools[place].replicas[number]
        own = [one for one in replica.unfinished + replica.coming if one.stage is Stage.HERE]
        own += self._lose_prompts(pool, number)
        for request in own:
            request.forget_cache()
        given_back = own + self._call_off(pool, number)
        for request in given_back:
            request.retries += 1
        self._again += [(place, request) for request in given_back]
        replica.empty()

    def _cut_step(self, place: int, number: int, now_s: float) -> None:
        """End the step that is under way; no token comes of it."""
        forms = (Kind.STEP_FORMS, Kind.STEP_FORMS_LATE)
        self._events.call_off(lambda event: event.kind in forms and event[2:] == (place, number))
        ends = (Kind.STEP_ENDS, place, number)
        if self._events.call_off(lambda event: event[1:] == ends):
            step = self._pools[place].replicas[number].steps[-1]
            step.duration_s = now_s - step.start_s
            step.prefill_tokens = step.decodes = step.decode_tokens = 0
        self._pools[place].replicas[number].cut_step()

    def _call_off(self, pool: Pool, number: int) -> list[Request]:
        """Requests whose caches a decode replica was to take in, and which ask another for room."""
        found = [
            request
            for request in pool.requests
            if request.replica == number
            and request.stage is not Stage.HERE
            and request.lost_s is None
        ]
        for request in found:
            is_read = request.stage is Stage.READ
            request.stage = Stage.HERE if is_read else Stage.IN_LINE
            request.blocks, request.fixed_blocks = [], []
            self._cancel_arrival(request)
            if is_read:
                request.forget_cache()
        return found

    def _lose_prompts(self, pool: Pool, number: int) -> list[Request]:
        """Prompts whose caches a prefill replica kept, and which are to be computed again."""
        found = [
            request
            for request in pool.requests
            if request.replica == number
            and request.finish_s is not None
            and (request.blocks or request.fixed_blocks or request.shared)
        ]
        for request in found:
            request.generated = 0
            request.first_s = request.latest_s = request.finish_s = None
            self._cancel_arrival(request)
        return found

    def _cancel_arrival(self, request: Request) -> None:
        for kind in (Kind.CACHE_ARRIVES, Kind.IS_READ):
            arrives = (kind, 0, request.number)
            self._events.call_off(lambda event, arrives=arrives: event[1:] == arrives)

    def send_again(self, now_s: float) -> list[int]:
        """All that changes at this instant has changed. Returns replicas of the decode pool that
        have room by that.
        """
        prompts = [request for place, request in self._again if place == 0]
        found = [self._handing.ask_again(one) for one in prompts] if self._handing else []
        for place, request in self._again:
            kind = Kind.GOES_ON if place else Kind.COMES_LATER
            self._events.add(now_s, kind, request.number)
        self._again, self._is_told = [], False
        return [replica for replica in found if replica is not None]
