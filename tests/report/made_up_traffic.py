"""Traffic between ranks, made up for a run."""

import numpy as np
import pandas as pd

from simulator.results import tables as records


def traffic_of(name: str, rng: np.random.Generator, num_ranks: int) -> pd.DataFrame:
    pairs = [(s, d) for s in range(num_ranks) for d in range(num_ranks) if s != d]
    rows = []
    for phase, scale in (("decode", 2e5), ("prefill", 2e7)):
        toward = rng.lognormal(0, 0.4, num_ranks)
        for direction, factor in (("dispatch", 1), ("combine", 2)):
            for s, d in pairs:
                rows.append(
                    (
                        name,
                        phase,
                        direction,
                        s,
                        d,
                        scale
                        * factor
                        * (toward[d] if factor == 1 else toward[s])
                        * rng.uniform(0.8, 1.2),
                    )
                )
    return pd.DataFrame(rows, columns=list(records.TRAFFIC_COLUMNS))
