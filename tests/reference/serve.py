"""Serve a trace, one event after another."""

from __future__ import annotations

from collections.abc import Callable

from simulator.deployment.plan import DeploymentPlan
from simulator.workload.traces import RequestTrace
from tests.reference.events import Event, Events, Kind
from tests.reference.failures import Failures
from tests.reference.hand_over import HandOver
from tests.reference.pool import Pool, start_pools
from tests.reference.replica import Replica
from tests.reference.requests import Part, Request, Stage

Price = Callable[[str, list[list[Part]]], float]
"""Seconds of a step of a pool, by its name, given what each rank computes."""


def serve_by_rules(
    plan: DeploymentPlan, trace: RequestTrace, price: Price, ingress_delay_s: float
) -> list[Pool]:
    """Serve the whole trace. Returns its pools, the one that requests come to first.

    Args:
        ingress_delay_s: seconds from the client to the scheduler.
    """
    run = _Run(plan, trace, price, ingress_delay_s)
    run.run()
    return run.pools


class _Run:
    """A deployment in virtual time."""

    def __init__(
        self, plan: DeploymentPlan, trace: RequestTrace, price: Price, ingress_delay_s: float
    ) -> None:
        self.pools = start_pools(plan, trace)
        self.first, self.last = self.pools[0], self.pools[-1]
        self._price, self._ingress_delay_s = price, ingress_delay_s
        self._events, self._now_s, self._num_done = Events(), 0.0, 0
        self._is_closed = trace.concurrency is not None
        self._send_s, self._num_sent = trace.send_s, 0
        self._unsent = self.first.requests[::-1]
        starts_s = trace.arrival_s[: trace.concurrency].tolist()
        self._sent_s = starts_s[-1] if trace.start == "at_once" else 0.0
        for sent_s in starts_s:
            self._send(sent_s)
        self._handing = HandOver(plan, self.pools, self._events) if plan.transfer else None
        self._failures = Failures(plan.list_failures(), self.pools, self._events, self._handing)

    def _send(self, sent_s: float) -> None:
        """Let a client send whichever request is next then, if there are as many."""
        if self._num_sent == len(self.first.requests):
            return
        at_once = self._is_closed and not self._ingress_delay_s and not self._send_s
        kind = Kind.RETURNS if at_once else Kind.COMES
        self._events.add(sent_s + self._ingress_delay_s, kind, self._num_sent)
        self._num_sent += 1

    def run(self) -> None:
        """Let everything happen until all requests are done, or nothing happens any more. Prompts
        of lost ones that are still under way then are of no use to anybody.
        """
        happen = {
            Kind.STEP_ENDS: self._end_step,
            Kind.STEP_FORMS: self._form_step,
            Kind.STEP_FORMS_LATE: self._form_step,
            Kind.COMES: self._come,
            Kind.RETURNS: self._come,
            Kind.COMES_LATER: self._come,
            Kind.PROMPT_LEAVES: self._leave,
            Kind.GOES_ON: self._go_on,
            Kind.CACHE_ARRIVES: self._arrive,
            Kind.IS_READ: self._take_in,
            Kind.CHANGES: lambda event: self._failures.change(event.at_s, event.number),
            Kind.HAS_CHANGED: lambda event: self._send_again(event.at_s),
        }
        while self._num_done < len(self.first.requests) and self._events.has_next:
            event = self._events.take_next()
            self._now_s = event.at_s
            happen[event.kind](event)

    def _finish(self) -> None:
        """A request needs nothing more, and a client of a closed loop sends another."""
        self._num_done += 1
        if self._is_closed:
            self._sent_s = max(self._sent_s, self._now_s) + self._send_s
            self._send(self._sent_s)

    def _send_again(self, now_s: float) -> None:
        for replica in self._failures.send_again(now_s):
            self._form_soon(1, replica)

    def _form_soon(self, place: int, number: int, kind: Kind = Kind.STEP_FORMS) -> None:
        """Let a replica form a step at this instant, unless it is going to anyway."""
        replica = self.pools[place].replicas[number]
        if not replica.is_busy:
            replica.is_busy = True
            self._events.add(self._now_s, kind, number, place)

    def _end_step(self, event: Event) -> None:
        pool = self.pools[event.place]
        for request in pool.replicas[event.number].end_step(self._now_s):
            if pool is self.last:
                self._finish()
            else:
                self._events.add(self._now_s, Kind.PROMPT_LEAVES, request.number)
        self._events.add(self._now_s, Kind.STEP_FORMS, event.number, event.place)

    def _form_step(self, event: Event) -> None:
        pool = self.pools[event.place]
        replica = pool.replicas[event.number]
        if replica.formed is None:
            replica.formed = self._form(replica)
        parts, replica.formed = replica.formed, None
        replica.is_busy = any(parts)
        if not replica.is_busy:
            return
        duration_s = self._price(pool.name, parts)
        replica.record_step(self._now_s, duration_s)
        self._events.add(self._now_s + duration_s, Kind.STEP_ENDS, event.number, event.place)
        if pool.settings.rules.steps_ahead:
            replica.begin_step()
            replica.formed = self._form(replica)
            if not any(replica.formed):
                replica.formed = None  # it is formed when the other has ended

    def _form(self, replica: Replica) -> list[list[Part]]:
        """Let a replica form a step of what has come."""
        replica.queue_new()
        parts, reserved = replica.form_step(self._now_s)
        for rank in replica.ranks:
            for request in rank.reading:
                if request.stage is Stage.READ and request.read_s is not None:
                    self._events.add(request.read_s, Kind.IS_READ, request.number)
                    request.read_s = None
        for request in reserved:
            assert self._handing is not None
            self._handing.use_room(request, self._now_s)
        return parts

    def _come(self, event: Event) -> None:
        """A request comes to the first pool, if it need not ask the other for room before."""
        is_new, rules = event.kind is not Kind.COMES_LATER, self.first.plan.serving.rules
        request = self._unsent.pop() if is_new else self.first.requests[event.number]
        if is_new:
            request.arrival_s = self._now_s
        if is_new and rules.refuses_long and request.num_input > rules.token_budget:
            request.is_refused = True
            self._lose(request)
            return
        may_ask = self._handing and is_new
        if may_ask and self._handing.asks_first(request):
            self._handing.expect_cache(request)
            self._events.add(self._now_s, Kind.GOES_ON, request.number)
            return
        if self.last.requests[request.number].lost_s is not None:
            return
        if self.first.send(request, self._now_s) is None:
            self._lose(request)
            return
        late = event.kind is Kind.RETURNS
        forms = Kind.STEP_FORMS_LATE if late else Kind.STEP_FORMS
        self._form_soon(0, request.replica, forms)

    def _lose(self, prompt: Request) -> None:
        """No replica is left that could compute a prompt."""
        prompt.lost_s = self._now_s
        if self._handing and (replica := self._handing.give_up(prompt, self._now_s)) is not None:
            self._form_soon(1, replica)
        self._finish()

    def _leave(self, event: Event) -> None:
        assert self._handing is not None
        prompt = self.first.requests[event.number]
        if self._handing.leave(prompt, self._now_s):
            return
        self._let_go(prompt)
        if self.last.requests[prompt.number].lost_s is None:
            self._finish()

    def _go_on(self, event: Event) -> None:
        """A request comes to the decode pool, to ask for room or to be computed again."""
        request = self.last.requests[event.number]
        if request.lost_s is not None:
            return
        if self.last.send(request, self._now_s) is None:
            request.lost_s = self._now_s
            prompt = self.first.requests[event.number]
            if prompt.finish_s is not None:  # else it leaves when it is computed
                self._let_go(prompt)
            self._finish()
        else:
            self._form_soon(1, request.replica)

    def _arrive(self, event: Event) -> None:
        assert self._handing is not None
        self._let_go(self.first.requests[event.number])
        request = self.last.requests[event.number]
        self._handing.take_in(request)
        self._form_soon(1, request.replica)

    def _take_in(self, event: Event) -> None:
        """A request has its first blocks, and waits for nothing but tokens and a place."""
        request = self.first.requests[event.number]
        assert request.replica is not None
        rank = self.first.replicas[request.replica].ranks[request.rank]
        rank.reading.remove(request)
        rank.ready.append(request)
        request.stage = Stage.HERE
        self._form_soon(0, request.replica)

    def _let_go(self, prompt: Request) -> None:
        """A prompt's cache is needed no longer where it was computed, and others may start."""
        assert self._handing is not None
        if self._handing.let_go(prompt):
            replica = self.first.replicas[prompt.replica]
            if replica.unfinished or replica.coming:
                self._form_soon(0, prompt.replica)
