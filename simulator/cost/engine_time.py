"""Engine overhead for the sequences of a step, in compiled code, and for the requests of a front
end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.base.jit import jit

MEASURED_SEQUENCES = 512
"""Most sequences of one batch for which engines were measured: there predictions are as unbiased as
with few (median of predicted over measured time per token 1.00 on 23 serving points from 300
on)."""
BEYOND_S = 2e-6
"""Most seconds for each further sequence: as much as the published maximum throughput of
TensorRT-LLM 0.17, with thousands of sequences, leaves for one."""


@jit
def sequences_s(count: Any, sequence_s: float) -> Any:
    """Seconds of engine overhead of steps with ``count`` sequences in their fullest batch.

    Args:
        sequence_s: seconds for one sequence, as far as it was measured.
    """
    beyond = np.maximum(count - MEASURED_SEQUENCES, 0)
    return (count - beyond) * sequence_s + beyond * min(sequence_s, BEYOND_S)


def streams_s(count: Any, stream_s: float) -> Any:
    """Seconds from the engine to the client for the tokens of a request beside which ``count``
    requests run, itself among them.

    Beyond :data:`MEASURED_SEQUENCES`, where nothing was measured, no further seconds are added.

    Args:
        stream_s: seconds for one request, see
            :attr:`~simulator.config.calibration.engine.EngineFit.stream_s`.
    """
    return np.minimum(count, MEASURED_SEQUENCES) * stream_s
