"""Replicas that stop and start as a test writes it down, or as a seed has it."""

import dataclasses

import numpy as np

from simulator.policies.failures import Change


@dataclasses.dataclass(frozen=True)
class Script:
    """Changes as they are written down."""

    script: tuple[Change, ...]

    def changes(self, machines, rng):
        return iter(self.script)


Script.__module__ = "simulator.tests"  # as if it were shipped: not held to its contract


def with_changes(plan, *changes):
    return dataclasses.replace(plan, failures=(Script(tuple(changes)),))


def check_all_is_given_back(pool):
    """Nothing waits, runs or holds a block any more."""
    caches, counts = pool.ranks.caches, pool.ranks.counts
    free = caches.free_blocks + caches.num_full + caches.num_evictable * pool.limits.prefix_blocks
    assert (free == caches.capacity_blocks).all()
    for kind in ("num_running", "num_reserved", "num_bereft"):
        assert not pool.ranks.each[kind].any()
    for queue in ("waiting", "ready", "line"):
        assert not pool.ranks.each[queue]["count"].any()
    assert not counts.outstanding_tokens.any()
    assert (counts.num_pushed == counts.num_finished).all()


def check_outcomes(plan, trace, served):
    """Every request finishes or is lost, no token comes twice, and nothing is kept for anybody;
    returns the table of requests.
    """
    table = served.requests_table()
    assert set(table["outcome"]) <= {"finished", "lost"}
    is_finished = (table["outcome"] == "finished").to_numpy()
    assert (is_finished == table["finish_s"].notna()).all()
    done = table[is_finished]
    assert (done["arrival_s"] <= done["scheduled_s"]).all()
    assert (done["scheduled_s"] <= done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    for name, pool in served.pools.items():
        if name == "both":
            tokens = pool.requests.each.generated
            assert (tokens[is_finished] == trace.num_output[is_finished]).all()
            if plan.serving.recovery.requests != "retry":  # whose first attempts are in vain
                assert pool.ranks.gap_counts.sum() == np.maximum(tokens - 1, 0).sum()
        # Prompts of lost requests may be under way when nobody is left to wait for.
        if name != "prefill" or is_finished.all():
            check_all_is_given_back(pool)
    check_silence(served)
    return table


def check_silence(served):
    """A replica that hangs or has stopped takes no step, and steps do not overlap."""
    for name in served.pools:
        steps = served.steps_of(name)
        for replica, own in steps.groupby("replica"):
            start_s, end_s = own["start_s"].to_numpy(), (own["start_s"] + own["duration_s"])
            end_s = end_s.to_numpy()
            assert (end_s[:-1] <= start_s[1:] + 1e-12).all()
            silent_s = None
            for change in served.changed:
                if served.pools[name].first_replica + replica not in change.replicas:
                    continue
                if silent_s is not None:
                    during = (start_s > silent_s) & (start_s < change.at_s)
                    assert not during.any()
                    assert not ((start_s < silent_s) & (end_s > silent_s + 1e-12)).any()
                silent_s = change.at_s if change.kind in ("hangs", "stops") else None
            if silent_s is not None:
                assert (end_s <= silent_s + 1e-12).all()


def draw_changes(plan, seed, span_s):
    """Replicas of either pool stop, and some of them start again."""
    rng = np.random.default_rng([seed, 7])
    found = []
    for pool, machines in plan.machines.items():
        for _ in range(int(rng.integers(1, 4))):
            count = int(rng.integers(1, machines.num_replicas + 1))
            replicas = tuple(sorted(rng.choice(machines.num_replicas, count, False).tolist()))
            at_s = float(rng.uniform(0, span_s))
            found.append(Change(at_s, pool, replicas, starts=False))
            if rng.random() < 0.6:
                later_s = at_s + float(rng.uniform(0, span_s / 2))
                found.append(Change(later_s, pool, replicas, starts=True))
    return sorted(found)
