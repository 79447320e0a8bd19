"""Virtual time. SimPy owns the clock; the compiled parts decide what is in a step and, at the
``step`` fidelity, loop over steps.
"""
