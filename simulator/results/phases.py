"""Phases of a step's time; without pandas, which takes a third of a second in each process of a
shard.
"""

STEP_PHASES = (
    "attention",
    "dense",
    "experts",
    "dispatch",
    "combine",
    "wait",
    "collective",
    "overhead",
)
"""Phases of a step's time, along the critical path; the eight add up to the step.

``attention`` mixers with their projections; ``dense`` feed-forward blocks that every token uses
(dense layers, shared experts, router) and the output head; ``experts`` routed experts, mean over
ranks; ``dispatch`` and ``combine`` the two all-to-alls; ``wait`` the straggler wait (slowest
minus mean, attention and experts together); ``collective`` tensor-parallel all-reduces and, in a
pipeline, transfers to the next stage; ``overhead`` the engine's own time between forward passes."""
