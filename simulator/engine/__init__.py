"""Execution of deployments in virtual time. SimPy owns the clock; compiled code batches requests
and, at the ``step`` fidelity, loops over steps.
"""
