"""One clock: whoever says when steps end, the same events happen in the same order."""

import numpy as np
import pytest

from simulator.engine import loop_state
from simulator.engine.events import code_of, pop_event, push_event, start_events
from simulator.engine.timeline import serve
from tests.cases import seeds
from tests.laws.deployments import check_same_events, draw_deployment, serve_by_events


@seeds(2000, 12, soak=200)
def test_events_have_one_order_at_every_fidelity(tiny, monkeypatch, seed):
    """Closed loops of many replicas and of two pools among them. A time may differ by its last
    digit, since SimPy adds up differences.
    """
    plan, trace = draw_deployment(tiny, seed)
    compiled = tiny.serve(plan, trace)
    simpy = serve_by_events(monkeypatch, plan, trace, tiny.tables)
    check_same_events(compiled, simpy)


def test_simpy_has_no_event_of_a_request_where_steps_are_priced_by_tables(tiny, monkeypatch):
    made = []
    environment = loop_state.simpy.Environment

    class Counted(environment):
        def schedule(self, *arguments, **keys):
            made.append(arguments)
            super().schedule(*arguments, **keys)

    monkeypatch.setattr(loop_state.simpy, "Environment", Counted)
    counts = []
    for number in (10, 100):
        made.clear()
        serve(tiny.plan("dense", replicas=3), tiny.trace(number))
        counts.append(len(made))
    assert counts[0] == counts[1] <= 2


@pytest.mark.parametrize("seed", range(20))
def test_events_come_in_order_of_time_then_kind_then_number(seed):
    rng = np.random.default_rng(seed)
    events, held, came = start_events(300), [], []
    for _ in range(600):
        if len(held) < 300 and (not held or rng.random() < 0.55):
            event = (
                float(rng.integers(8)),
                int(code_of(int(rng.integers(7)), int(rng.integers(50)))),
            )
            push_event(events, *event)
            held.append(event)
        else:
            came.append((events.at_s[0], events.code[0]))
            pop_event(events)
            assert came[-1] == min(held)
            held.remove(min(held))
    assert events.num_left[0] == len(held)
