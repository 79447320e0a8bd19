"""Blocks of a model as PyTorch modules, built from the same specs that the simulator counts.

Every module can be one tensor-parallel rank's part of its block
(:class:`~simulator.runtime.layers.weights.Part`); its result is then a partial sum that the ranks
of the group add up. Weights come from a :class:`~simulator.runtime.layers.weights.Weights`, by
name.
"""
