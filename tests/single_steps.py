"""Rows of runs of steps taken apart, for tests that look at steps one by one."""

import numpy as np


def take_apart(steps):
    """A row a step: times and tokens of a run spread evenly over its steps."""
    count = steps["num_steps"].to_numpy()
    found = steps.loc[steps.index.repeat(count)].copy()
    first = np.repeat(np.cumsum(count) - count, count)
    place = np.arange(len(found)) - first
    over = found["num_steps"].to_numpy()
    times = [name for name in found if name.endswith("_s") and name != "start_s"]
    for name in times:
        found[name] = found[name] / over
    found["decode_tokens"] = found["decode_tokens"] // over
    found["start_s"] += place * found["duration_s"]
    found["num_steps"] = 1
    return found.reset_index(drop=True)
