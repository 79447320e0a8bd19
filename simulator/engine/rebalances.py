"""Rebalances of a pool during a run: when its policy is asked, and the moves that it decides on."""

from __future__ import annotations

from collections.abc import Iterator

from simpy.events import AllOf, ProcessGenerator

from simulator.engine.instants import AGAIN, CHANGE
from simulator.engine.moves_beside_steps import move_beside_steps
from simulator.engine.moving_experts import MovingExperts
from simulator.engine.rebalancing import moves_any
from simulator.engine.run import Run
from simulator.policies.contracts import decide_placement


def rebalance(
    run: Run, place: int, experts: MovingExperts, looks: Iterator[float]
) -> ProcessGenerator:
    """Ask a pool's rebalancing policy at its times, or after its steps, and move experts as it
    decides.
    """
    pool, env = run.state.pools[place], run.instants.env
    policy = pool.plan.serving.rebalancing
    by_steps = getattr(policy, "every_steps", None) is not None
    for number, look in enumerate(looks):
        if not by_steps:
            at_s = yield run.instants.wait_until(look, CHANGE)
        elif run.step_looks.count(place) < look:
            at_s = yield run.step_looks.wait_for(place, int(look))
        else:
            continue
        if at_s > run.until_s:
            return
        run.run_ahead(at_s)
        if experts.is_moving(at_s) or run.replica_states.has_no_whole(place):
            continue
        drafted = pool.plan.placement.drafts.num_tokens
        load = experts.measure_load(at_s, run.log.count_tokens(place, drafted))
        load = load._replace(num_steps=int(look) if by_steps else run.step_looks.count(place))
        placement = pool.plan.placement
        placed = decide_placement(policy, load, placement.rng("rebalancing", number))
        if placed is None or not moves_any(placement, placed):
            continue
        if getattr(policy, "layers_per_chunk", None) is not None:
            env.process(_move_in_parts(run, place, experts.move_in_parts(placed, load)))
        elif (moved := experts.price_move(placed, load)).stops:
            experts.place(placed)
            run.pause_all(place, moved.seconds)
        else:
            env.process(move_beside_steps(run, place, experts, placed))


def _move_in_parts(run: Run, place: int, parts: Iterator[float]) -> ProcessGenerator:
    """Move experts part by part; every replica that has requests forms a step between two."""
    for seconds in parts:
        ended = yield AllOf(run.instants.env, run.pause_all(place, seconds))
        yield run.instants.wait_until(max(ended.values()), AGAIN)
        run.run_ahead(max(ended.values()))
